//! The report as CSV (RFC 4180), one line per tensor, for spreadsheets. Numbers in full; what was
//! not measured is an empty field. Not here: totals.
//!
//! Names come from files that anybody may have made, and a spreadsheet runs a field as a formula that
//! begins with `=`, `+`, `-`, `@`, a tab or a line break. Such text gets an apostrophe in front and
//! quotes around, as OWASP advises ("CSV Injection"); so does text that begins with an apostrophe,
//! so that whoever wants the name takes one apostrophe away, if there is one. JSON has names as they are.

use super::{Report, TensorReport};
use crate::container::Spread;

const HEADER: &str = "name,shape,dtype,became,reason,sparsity,delta_min,delta_mean,delta_max,alpha_min,alpha_mean,alpha_max,relative_squared_error,entropy_bits,source_bytes,bytes,ratio,calibration,relative_output_error,repaired,bits_per_weight";

pub(super) fn render(report: &Report) -> String {
    let mut text = format!("{HEADER}\r\n");
    for tensor in &report.tensors {
        text += &line(tensor);
        text += "\r\n";
    }
    text
}

fn line(tensor: &TensorReport) -> String {
    let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
    let mut fields: Vec<String> =
        [&tensor.name, &shape.join("x"), &tensor.dtype.to_string(), &tensor.became, &tensor.reason]
            .map(|text| quote(text))
            .into();
    fields.push(number(tensor.sparsity));
    fields.extend(spread(tensor.delta));
    fields.extend(spread(tensor.alpha));
    fields.push(number(tensor.relative_squared_error));
    fields.push(number(tensor.entropy));
    fields.extend([tensor.source_bytes.to_string(), tensor.bytes.to_string(), tensor.ratio.to_string()]);
    fields.push(quote(tensor.calibration.as_deref().unwrap_or_default()));
    fields.push(number(tensor.relative_output_error));
    fields.push(quote(tensor.repaired.as_deref().unwrap_or_default()));
    fields.push(number(tensor.bits_per_weight));
    fields.join(",")
}

fn number(value: Option<f64>) -> String {
    value.map(|x| x.to_string()).unwrap_or_default()
}

fn spread(spread: Option<Spread>) -> [String; 3] {
    [spread.map(|s| s.min), spread.map(|s| s.mean), spread.map(|s| s.max)].map(number)
}

/// Text that no spreadsheet takes for a formula.
fn quote(text: &str) -> String {
    // The wide forms are what spreadsheets for Chinese and Japanese take for the others.
    if text.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '\'', '＝', '＋', '－', '＠']) {
        return format!("\"'{}\"", text.replace('"', "\"\""));
    }
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::quote;

    /// A tensor called `=HYPERLINK(…)` was a link as soon as somebody opened the file.
    #[test]
    fn no_text_is_a_formula() {
        for (text, field) in [
            ("conv1.weight", "conv1.weight"),
            ("a,b \"c\"", r#""a,b ""c""""#),
            ("a=b", "a=b"),
            ("=HYPERLINK(\"x\")", r#""'=HYPERLINK(""x"")""#),
            ("+1", r#""'+1""#),
            ("-1", r#""'-1""#),
            ("@SUM(A1)", r#""'@SUM(A1)""#),
            ("\t=1", "\"'\t=1\""),
            ("\r=1", "\"'\r=1\""),
            ("\n=1", "\"'\n=1\""),
            ("＝1", "\"'＝1\""),
            ("'=1", "\"''=1\""),
            ("", ""),
        ] {
            assert_eq!(quote(text), field);
        }
    }
}

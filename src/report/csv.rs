//! The report as CSV (RFC 4180), one line per tensor, for spreadsheets. Numbers in full; what was
//! not measured is an empty field. Not here: totals.

use super::{Report, TensorReport};
use crate::container::Spread;

const HEADER: &str = "name,shape,dtype,became,reason,sparsity,delta_min,delta_mean,delta_max,alpha_min,alpha_mean,alpha_max,relative_squared_error,entropy_bits,source_bytes,bytes,ratio";

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
        [&tensor.name, &shape.join("x"), &tensor.dtype, &tensor.became, &tensor.reason].map(|text| quote(text)).into();
    fields.push(number(tensor.sparsity));
    fields.extend(spread(tensor.delta));
    fields.extend(spread(tensor.alpha));
    fields.push(number(tensor.relative_squared_error));
    fields.push(number(tensor.entropy));
    fields.extend([tensor.source_bytes.to_string(), tensor.bytes.to_string(), tensor.ratio.to_string()]);
    fields.join(",")
}

fn number(value: Option<f64>) -> String {
    value.map(|x| x.to_string()).unwrap_or_default()
}

fn spread(spread: Option<Spread>) -> [String; 3] {
    [spread.map(|s| s.min), spread.map(|s| s.mean), spread.map(|s| s.max)].map(number)
}

fn quote(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

//! The report as one HTML page without scripts or outside resources: the same table and summary,
//! with a bar for each error. Not here: any number that the other formats do not have.

use super::table::{HEADER, row};
use super::{Report, TensorReport, table};

const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:2em}table{border-collapse:collapse}\
th,td{padding:.2em .8em;text-align:right;white-space:nowrap}th:nth-child(-n+4),td:nth-child(-n+4){text-align:left}\
tr:nth-child(even){background:#f4f4f4}meter{width:6em}";

pub(super) fn render(report: &Report) -> String {
    let head: String = HEADER.iter().map(|title| format!("<th>{title}</th>")).collect();
    let rows: String = report.tensors.iter().map(line).collect();
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>twn-pack report</title>\
<style>{STYLE}</style>\n<h1>twn-pack report</h1>\n<pre>{}</pre>\n\
<table><thead><tr>{head}<th></th></tr></thead><tbody>\n{rows}</tbody></table>\n</html>\n",
        escape(&table::summary(report))
    )
}

fn line(tensor: &TensorReport) -> String {
    let cells: String = row(tensor).iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
    let error = tensor.relative_squared_error;
    let meter =
        error.map(|e| format!("<meter max=\"1\" low=\"0.3\" high=\"0.5\" optimum=\"0\" value=\"{e:.4}\"></meter>"));
    format!("<tr>{cells}<td>{}</td></tr>\n", meter.unwrap_or_default())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    #[test]
    fn markup_in_names_stays_text() {
        assert_eq!(super::escape("<b>&\"x\""), "&lt;b&gt;&amp;&quot;x&quot;");
    }
}

//! The report as JSON, for programs. Not here: any number that the other formats do not have.

use serde::Serialize;

pub(super) fn render(report: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(report).expect("a report has string keys and finite numbers");
    text.push('\n');
    text
}

//! The report as JSON, for programs. Not here: any number that the other formats do not have.

use std::io::{self, Write};

use serde::Serialize;

pub(super) fn render(report: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(report).expect("a report has string keys and finite numbers");
    text.push('\n');
    text
}

pub(super) fn write(report: &impl Serialize, mut to: impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut to, report)?;
    to.write_all(b"\n")
}

//! The report as a table for people: aligned columns, units, a summary below. Not here: colour
//! decisions; the caller knows whether this is a terminal.

use comfy_table::{CellAlignment, ColumnConstraint, Table, Width, presets};

use super::{Budget, Report, TensorReport, bytes, count, ratio};
use crate::container::Spread;
use crate::select::BUDGET;

/// From here on an error stands out: more than half of a tensor's energy is lost.
const LARGE_ERROR: f64 = 0.5;

/// Lines that are laid out together; each takes some KiB meanwhile.
const LINES: usize = 1000;

/// Characters of a name.
const LONGEST_NAME: usize = 120;

/// Spaces between columns.
const GAP: u16 = 2;

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const RESET: &str = "\x1b[0m";

pub(super) const HEADER: [&str; 11] = [
    "tensor",
    "shape",
    "dtype",
    "became",
    "zeros",
    "Δ mean [min, max]",
    "α mean [min, max]",
    "rel. sq. error",
    "entropy",
    "bytes",
    "ratio",
];

/// In parts: the header, lines, and the summary.
pub(super) fn render(report: &Report, color: bool) -> impl Iterator<Item = String> {
    // The header comes first, with no tensors.
    let parts = std::iter::once(&[][..]).chain(report.tensors.chunks(LINES));
    let mut widths = [0u16; HEADER.len()];
    for part in parts.clone() {
        let found = lay_out(part).column_max_content_widths();
        widths.iter_mut().zip(found).for_each(|(width, found)| *width = found.max(*width));
    }
    let lines = parts.map(move |part| {
        let mut table = lay_out(part);
        for (column, width) in table.column_iter_mut().zip(widths) {
            column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width.saturating_add(GAP))));
        }
        let styles = part.iter().map(|tensor| match tensor.relative_squared_error {
            Some(error) if error > LARGE_ERROR => RED,
            _ => "",
        });
        let lines = table.lines().zip(std::iter::once(BOLD).chain(styles)).skip(usize::from(!part.is_empty()));
        let lines = lines.map(|(line, style)| match line.trim_end() {
            line if color && !style.is_empty() => format!("{style}{line}{RESET}\n"),
            line => format!("{line}\n"),
        });
        lines.collect()
    });
    let budget = report.budget.as_ref().map(Budget::to_table).unwrap_or_default();
    lines.chain([format!("\n{}{budget}", summary(report))])
}

/// The header and these lines, as wide as they are.
fn lay_out(tensors: &[TensorReport]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(HEADER);
    table.add_rows(tensors.iter().map(|tensor| {
        let [name, cells @ ..] = row(tensor);
        std::iter::once(shortened(name)).chain(cells)
    }));
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, GAP));
        if matches!(i, 4 | 7..=10) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

pub(super) fn row(tensor: &TensorReport) -> [String; 11] {
    let kept = tensor.became == "dense" || tensor.became.starts_with("int8");
    let with_reason = !tensor.reason.is_empty() && (kept || tensor.reason == BUDGET);
    let shape: Vec<String> = tensor.shape.iter().map(u64::to_string).collect();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        // A name may hold anything; a table's line may not.
        tensor.name.escape_debug().to_string(),
        format!("[{}]", shape.join(", ")),
        tensor.dtype.to_string(),
        if with_reason {
            let repaired = tensor.repaired.iter().map(|by| format!(", {}", by.escape_debug()));
            let became = tensor.became.escape_debug();
            format!("{became}: {}{}", tensor.reason.escape_debug(), repaired.collect::<String>())
        } else {
            tensor.became.escape_debug().to_string()
        },
        or_dash(tensor.sparsity.map(|s| format!("{:.1} %", 100.0 * s))),
        or_dash(tensor.delta.map(spread)),
        or_dash(tensor.alpha.map(spread)),
        match (tensor.relative_squared_error, tensor.relative_output_error) {
            (Some(error), Some(output)) => format!("{}, outputs {}", share(error), share(output)),
            (error, _) => or_dash(error.map(share)),
        },
        or_dash(tensor.entropy.map(|e| format!("{e:.3} bit"))),
        bytes(tensor.bytes),
        ratio(tensor.ratio),
    ]
}

/// A long name with something left out: one of them would make every line as long.
fn shortened(name: String) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= LONGEST_NAME {
        return name;
    }
    let half = LONGEST_NAME / 2;
    letters[..half].iter().chain(&['…']).chain(&letters[letters.len() - half + 1..]).collect()
}

fn spread(s: Spread) -> String {
    format!("{} [{}, {}]", short(s.mean), short(s.min), short(s.max))
}

/// An error, which may go over many powers of ten.
pub(super) fn share(error: f64) -> String {
    if error == 0.0 || error >= 1e-3 { format!("{error:.4}") } else { format!("{error:.2e}") }
}

/// Four significant digits; powers of ten where the number is far from 1.
fn short(x: f64) -> String {
    if x == 0.0 || (1e-3..1e4).contains(&x.abs()) {
        let decimals = if x.abs() < 1.0 { 5 } else { 3 };
        format!("{x:.decimals$}")
    } else {
        format!("{x:.3e}")
    }
}

pub(super) fn summary(report: &Report) -> String {
    let t = &report.totals;
    let mut lines = vec![format!(
        "{} of {} tensors ternary: {} of {} elements",
        t.ternary_tensors,
        t.tensors,
        count(t.ternary_weights),
        count(t.elements)
    )];
    let (from, to) = (bytes(t.source_bytes), bytes(t.file_bytes));
    let change = match t.ratio {
        r if (1.0 / 1.005..1.005).contains(&r) => "about the same".to_owned(),
        0.0 => "nothing to make smaller".to_owned(),
        r if r < 1.0 => format!("{} larger", ratio(1.0 / r)),
        r => format!("{} smaller", ratio(r)),
    };
    lines.push(format!("size      {from} → {to}: {change}"));
    let int8 = if t.int8_tensors == 0 { String::new() } else { format!("int8 {}, ", bytes(t.int8_bytes)) };
    lines.push(format!(
        "          codes {}, scales {}, {int8}dense {}, index and padding {}",
        bytes(t.code_bytes),
        bytes(t.scale_bytes),
        bytes(t.dense_bytes),
        bytes(t.overhead_bytes)
    ));
    if t.int8_tensors > 0 {
        let plural = if t.int8_tensors == 1 { "" } else { "s" };
        lines.push(format!("int8      {} tensor{plural}, {} weights", t.int8_tensors, count(t.int8_weights)));
    }
    if t.ternary_tensors > 0 {
        lines.push(format!(
            "ternary   {:.3} bits per weight with scales: {} against the source, {} against f32, {} against f64",
            t.bits_per_weight,
            ratio(t.ternary_ratio),
            ratio(t.ternary_ratio_f32),
            ratio(t.ternary_ratio_f64)
        ));
    }
    if let (Some(sparsity), Some(error)) = (t.sparsity, t.relative_squared_error) {
        let several = report.tensors.iter().any(|tensor| tensor.became.contains(" planes "));
        // Zeros of one plane are weights with another.
        let of = if several { " among the codes of all planes" } else { "" };
        lines.push(format!("sparsity  {:.1} % zeros{of}", 100.0 * sparsity));
        lines.push(format!("error     {error:.4} of ‖W‖² lost over all ternary tensors (relative squared error)"));
        for (i, tensor) in report.worst(3).into_iter().enumerate() {
            let title = if i == 0 { "largest " } else { "        " };
            let error = tensor.relative_squared_error.unwrap_or_default();
            lines.push(format!("{title}  {}  {}", share(error), tensor.name.escape_debug()));
        }
    }
    if report.plan {
        lines.push("a plan    sizes are without the index; nothing was read or measured".to_owned());
    }
    lines.join("\n") + "\n"
}

//! What a budget chose, what the next rung would cost, and the curve of size and error, as a table or JSON. Not
//! here: any choice ([`crate::budget`]).

use serde::Serialize;

#[cfg(feature = "cli")]
use super::table::share;

/// How a model's size and error depend on each other, and what was chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Budget {
    /// What was asked for; nothing in a sweep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Which errors were made small: `relative` to each tensor, or `absolute`.
    pub minimize: &'static str,
    /// Of what they are errors: `weights`, or with statistics of inputs `outputs`; or both.
    pub errors: &'static str,
    /// The choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<CurvePoint>,
    /// The chosen rung of each tensor that the budget decided about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rungs: Vec<Rung>,
    /// Every rung of every tensor that a budget would decide about; in a sweep only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<Rung>,
    /// What could not be measured: scales that their type does not hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub impossible: Vec<ImpossibleRung>,
    /// From the smallest file to the one without any error, every step of it.
    pub curve: Vec<CurvePoint>,
}

/// A size of the model and its error.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CurvePoint {
    /// Bytes of the whole file.
    pub file_bytes: u64,
    /// Bytes of all tensors in the checkpoint over those.
    pub ratio: f64,
    /// Bits of codes and scales per weight, over the tensors that the budget decides about.
    pub bits_per_weight: f64,
    /// The mean of these tensors' relative squared errors; or, of absolute errors, Σ‖W − Ŵ‖² / Σ‖W‖².
    pub error: f64,
    /// The tensor of which the last step before this point was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// What that tensor became.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rung: Option<String>,
}

/// One way to store a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rung {
    /// The tensor's name.
    pub tensor: String,
    /// What it becomes.
    pub rung: String,
    /// Bytes of its sections, without padding.
    pub bytes: u64,
    /// The same per weight, in bits.
    pub bits_per_weight: f64,
    /// ‖W − Ŵ‖² / ‖W‖².
    pub relative_squared_error: f64,
    /// The same of the outputs, where statistics of inputs were known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_output_error: Option<f64>,
    /// The next larger one that is worth its bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<Box<Rung>>,
}

/// A way to store a tensor that it cannot have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImpossibleRung {
    /// The tensor's name.
    pub tensor: String,
    /// What it would become.
    pub rung: String,
    /// Why it cannot, and a way out.
    pub reason: String,
}

impl Budget {
    /// As JSON, indented, with a newline at the end.
    pub fn to_json(&self) -> String {
        super::json::render(self)
    }

    /// As tables for people.
    #[cfg(feature = "cli")]
    pub fn to_table(&self) -> String {
        let mut text = String::new();
        if let (Some(target), Some(chosen)) = (&self.target, &self.chosen) {
            let CurvePoint { bits_per_weight, error, .. } = chosen;
            text += &format!("budget    {target}: {bits_per_weight:.3} bits per weight, error {}\n\n", share(*error));
            text +=
                &table(&["tensor", "chosen", "bits", "error", "next", "bits", "error"], self.rungs.iter().map(rung));
            text += "\n";
        }
        let points = self.shown().into_iter().map(|point| {
            let step = point.tensor.as_deref().zip(point.rung.as_deref());
            let step = step.map(|(tensor, rung)| format!("{} {}", tensor.escape_debug(), rung.escape_debug()));
            vec![
                super::bytes(point.file_bytes),
                super::ratio(point.ratio),
                format!("{:.3}", point.bits_per_weight),
                share(point.error),
                step.unwrap_or_default(),
            ]
        });
        let error = format!("error of {}", self.errors);
        text + &table(&["file", "ratio", "bits per weight", &error, "last step"], points)
    }

    /// Of many points some, at sizes in a constant ratio; with the first and the last.
    #[cfg(feature = "cli")]
    fn shown(&self) -> Vec<&CurvePoint> {
        const POINTS: usize = 64;
        let [first, .., last] = &self.curve[..] else { return self.curve.iter().collect() };
        let sizes = last.file_bytes as f64 / first.file_bytes as f64;
        let ratio = if self.curve.len() <= POINTS { 1.0 } else { sizes.powf(1.0 / POINTS as f64) };
        let mut shown = vec![first];
        for (i, point) in self.curve.iter().enumerate().skip(1) {
            let least = shown.last().map_or(0.0, |last| last.file_bytes as f64 * ratio);
            if point.file_bytes as f64 >= least || i + 1 == self.curve.len() {
                shown.push(point);
            }
        }
        shown
    }
}

#[cfg(feature = "cli")]
fn rung(rung: &Rung) -> Vec<String> {
    let of = |rung: &Rung| {
        let error = share(rung.relative_squared_error);
        let outputs = rung.relative_output_error.map(|error| format!(", outputs {}", share(error)));
        [rung.rung.clone(), format!("{:.3}", rung.bits_per_weight), error + &outputs.unwrap_or_default()]
    };
    let next = rung.next.as_ref().map_or([const { String::new() }; 3], |next| of(next));
    std::iter::once(rung.tensor.escape_debug().to_string()).chain(of(rung)).chain(next).collect()
}

#[cfg(feature = "cli")]
fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

//! What the error of ternary weights adds to a layer's outputs on average goes into its bias:
//! b += (W − Ŵ)·E\[x\], with E\[x\] = Σx / rows of the statistics (arXiv 1906.04721, section 4.2; 1810.05723).
//! Not here: the statistics, or layers whose batch norm takes that up.

use rayon::prelude::*;

use crate::calibration::Calibration;
use crate::container::{Quantized, Replacement, Tensor};
use crate::source::{Checkpoint, FilterView, TensorView};
use crate::{Container, Error, Isa, Result};

/// Corrected biases: for every packed `NAME.weight` with sums of its inputs and a bias `NAME.bias`.
///
/// # Errors
/// Statistics of another shape or type, or codes that are damaged.
pub fn correct_bias(
    checkpoint: &Checkpoint,
    calibration: &Calibration,
    packed: &Container,
) -> Result<Vec<Replacement>> {
    let isa = Isa::detect()?;
    let mut replacements = Vec::new();
    for (name, tensor) in packed.tensors() {
        let quantized: &dyn Quantized = match &tensor {
            Tensor::Ternary(tensor) => tensor,
            Tensor::Int8(tensor) => tensor,
            Tensor::Dense(_) => continue,
        };
        let Some(bias) = name.strip_suffix(".weight").map(|layer| format!("{layer}.bias")) else { continue };
        let (Some(source), Some(old)) = (checkpoint.by_name(name), checkpoint.by_name(&bias)) else { continue };
        let (Some(w), Some(old)) = (FilterView::new(source, quantized.axis()), floats(old)) else { continue };
        let (filters, n) = (w.filters(), w.filter_len());
        if old.filter_len() * old.filters() != filters {
            continue;
        }
        let Some(means) = calibration.means(name, filters, n)? else { continue };
        let per_group = filters / (means.len() / n);
        let mut scratch = Vec::new();
        let old: &[f32] = old.read(0..filters, isa, &mut scratch);
        let correct = |(filter, &old): (usize, &f32)| {
            let (mut values, mut scratch) = (vec![0.0; n], Vec::new());
            quantized
                .dequantize_range(filter, 0..n, &mut values)
                .map_err(|e| Error::Request(format!("tensor `{name}`: {e}")))?;
            let w: &[f64] = w.read(filter * n..(filter + 1) * n, isa, &mut scratch);
            let terms = w.iter().zip(&values).zip(&means[filter / per_group * n..]);
            let error: f64 = terms.map(|((w, q), mean)| (w - f64::from(*q)) * mean).sum();
            Ok((f64::from(old) + error) as f32)
        };
        let values = old.par_iter().enumerate().map(|(i, b)| correct((i, b))).collect::<Result<_>>()?;
        replacements.push(Replacement { name: bias, values, by: "corrected for the mean input".to_owned() });
    }
    Ok(replacements)
}

/// A vector of floats, as the weights of one filter after another.
fn floats(tensor: TensorView<'_>) -> Option<FilterView<'_>> {
    (tensor.shape.len() == 1).then(|| FilterView::new(tensor, 0)).flatten()
}

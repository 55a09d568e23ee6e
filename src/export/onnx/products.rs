//! `MatMulNBits` in place of the products of a weight: onnxruntime's own operation, by output and blocks of weights. Not
//! here: decoders for every other operation ([`super`]), the bytes of codes ([`super::values`]).

use super::find::Product;
use super::rewrite::{self, New};
use super::values::{self, Layout};
use super::{Planner, Target, of_planes};
use crate::Granularity;
use crate::container::TernaryTensor;
use crate::onnx::data_type;

impl<'m, 'a> Planner<'m, 'a> {
    /// `MatMulNBits`, if the weight is used for products alone and its scales are those of blocks; else nothing.
    pub(super) fn as_products(
        &mut self,
        name: &str,
        tensor: &TernaryTensor<'a>,
        target: Target<'m>,
    ) -> Result<Option<String>, String> {
        let [rows, columns] = target.initializer.dims[..] else { return Ok(None) };
        let Some((products, transposes)) = self.names.products(target.name()) else { return Ok(None) };
        let output_axis = products[0].output_axis;
        // A name that would be taken for that of a transposed weight.
        let unclear = output_axis == 0 && target.name().ends_with(".turned");
        let alike = products.iter().all(|product| product.output_axis == output_axis) && !unclear;
        let by_output = tensor.granularity == Granularity::Tensor || target.axis == output_axis;
        let (outputs, width) = if output_axis == 0 { (rows, columns) } else { (columns, rows) };
        let (outputs, width) = (outputs as usize, width as usize);
        let Some(block) = block(tensor, width).filter(|_| alike && by_output) else { return Ok(None) };
        let planes = tensor.planes;
        let blocks = width.div_ceil(block);
        // By output, then by input: the filters are rows where they are the outputs.
        let along = usize::from(target.axis != output_axis);
        let layout = Layout::new(&[outputs, width], along);
        let (mut new, parts) = (New::default(), parts(output_axis));
        for plane in 0..planes {
            let part = values::nbits(name, tensor, plane, layout, width, block);
            let dims = [outputs, blocks, block / 4].map(|dim| dim as u64);
            new.tensor(&target.part(parts[0], plane, planes), &dims, data_type::UINT8, part);
            let (of, per_plane) = (tensor.clone(), tensor.scales_per_plane());
            let part = values::scales(name, target.dtype, outputs * blocks, move |i| {
                of.scale_at(plane * per_plane + values::scale_index(&of, i / blocks, i % blocks * block))
            });
            let dims = [(outputs * blocks) as u64];
            new.tensor(&target.part(parts[1], plane, planes), &dims, target.initializer.data_type, part);
        }
        let replaced = products.iter().map(|product| {
            let node = &self.model.nodes[product.node];
            (node.field.start, self.product(*product, target, planes, [outputs, width, block]))
        });
        let mut replaced: Vec<_> = replaced.collect();
        replaced.extend(transposes.iter().map(|&node| (self.model.nodes[node].field.start, Vec::new())));
        self.rewrite.replace(self.model, self.names, target.number, new, 0)?;
        for &node in &transposes {
            self.rewrite.gone.extend(self.model.nodes[node].outputs.iter().map(|name| (*name).to_owned()));
        }
        self.rewrite.nodes.extend(replaced);
        self.rewrite.microsoft = true;
        Ok(Some(format!("MatMulNBits of {outputs}×{width}, blocks of {block}{}", of_planes(planes))))
    }

    /// The nodes in place of a product: one per plane, their sum, and what a `Gemm` adds.
    fn product(&self, product: Product, target: Target<'_>, planes: usize, sizes: [usize; 3]) -> Vec<u8> {
        let node = &self.model.nodes[product.node];
        let output = node.outputs[0];
        let [outputs, width, block] = sizes;
        let added = node.inputs.get(2).filter(|input| !input.is_empty());
        let is_bias = |name: &&&str| {
            self.names
                .initializer(name)
                .is_some_and(|added| added.dims == [outputs as u64] && added.data_type == target.initializer.data_type)
        };
        let bias = added.filter(is_bias);
        let (mut new, mut summands) = (New::default(), Vec::new());
        let single = planes == 1 && (added.is_none() || bias.is_some());
        for plane in 0..planes {
            let [codes, scales] = parts(product.output_axis).map(|part| target.part(part, plane, planes));
            let summand = if single { output.to_owned() } else { format!("{output}.plane.{plane}") };
            let mut inputs = vec![node.inputs[0], &codes, &scales];
            if let (0, Some(bias)) = (plane, bias) {
                inputs.extend(["", "", bias]);
            }
            new.node("MatMulNBits", "com.microsoft", &inputs, &summand, |message| {
                [("K", width), ("N", outputs), ("bits", 2), ("block_size", block)]
                    .into_iter()
                    .fold(message, |message, (name, value)| rewrite::attribute(message, name, value as i64))
            });
            summands.push(summand);
        }
        if let (Some(added), None) = (added, bias) {
            summands.push((*added).to_owned());
        }
        new.sum(&format!("{output}.sum"), &summands, output);
        new.nodes
    }
}

/// What codes and scales of a product are called: the name keeps the order of the weight that was there.
fn parts(output_axis: usize) -> [&'static str; 2] {
    if output_axis == 0 { ["codes", "scales"] } else { ["turned.codes", "turned.scales"] }
}

/// The block of `MatMulNBits` in which a scale holds: a power of two from 16 on that the group is a multiple of.
fn block(tensor: &TernaryTensor<'_>, width: usize) -> Option<usize> {
    /// Wide enough for the scales not to count, and what onnxruntime's kernels know.
    const LARGEST: usize = 128;
    const SMALLEST: usize = 16;
    let fitting = match tensor.granularity {
        Granularity::Group(size) if tensor.scale_run() < tensor.filter_len => {
            1usize.checked_shl(size.trailing_zeros()).unwrap_or(LARGEST)
        }
        _ => width.checked_next_power_of_two()?.max(SMALLEST),
    };
    (fitting >= SMALLEST && width > 0).then_some(fitting.min(LARGEST))
}

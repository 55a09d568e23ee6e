//! The geometry of a 2-d convolution. Not here: products.

/// How a convolution walks over its input: `[height, width]` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// The filter's size in space.
    pub kernel: [usize; 2],
    /// Steps between outputs. At least 1.
    pub stride: [usize; 2],
    /// Zeros around the input.
    pub padding: [usize; 2],
    /// Steps between the inputs of one output. At least 1.
    pub dilation: [usize; 2],
    /// Channels and filters fall into so many groups that do not see each other. At least 1.
    pub groups: usize,
}

impl Conv2d {
    /// A dense convolution without padding, stride or dilation.
    pub fn new(kernel: [usize; 2]) -> Self {
        Self { kernel, stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1 }
    }

    /// The output's size for an input's, as in PyTorch; `None` where no filter fits, or a stride,
    /// dilation or kernel is 0.
    pub fn output(&self, input: [usize; 2]) -> Option<[usize; 2]> {
        let along = |i: usize| {
            let padded = self.padding[i].checked_mul(2)?.checked_add(input[i])?;
            let reach = self.kernel[i].checked_sub(1)?.checked_mul(self.dilation[i])?;
            let steps = padded.checked_sub(reach)?.checked_sub(1)?;
            (self.dilation[i] > 0).then_some(())?;
            Some(steps.checked_div(self.stride[i])? + 1)
        };
        Some([along(0)?, along(1)?])
    }
}

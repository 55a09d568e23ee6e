//! Products of any codes, scales and activations, bit by bit whatever the input says: every
//! instruction set gives the same bits, and what is within the range of `f32` lies within the
//! documented bounds of a naive sum. Convolutions are held against products of gathered columns.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ndarray::{Array2, Array4, ShapeBuilder, s};
use twn_pack::kernel::{Arithmetic, Conv2d, Kernel, PackedMatrix, Workspace};
use twn_pack::{Encoding, Granularity, Isa};
use twn_pack_fuzz::{Bytes, bits};

/// Below it nothing overflows on the way.
const RANGE: f64 = 1e38;

const UNIT: f64 = 1.001 / (1u64 << 24) as f64;
const LEAST: f64 = 1.5e-45;

struct Case {
    encoding: Encoding,
    /// Planes, filters, n.
    shape: [usize; 3],
    granularity: Granularity,
    codes: Box<[u8]>,
    scales: Vec<f32>,
    /// How numbers are made of bits.
    kind: u8,
    seed: u64,
}

impl Case {
    fn new(input: &mut Bytes<'_>, n: Option<usize>, filters: usize) -> Self {
        let encoding = input.pick(&[Encoding::T2, Encoding::T5, Encoding::B1]);
        let planes = input.pick(&[1, 1, 1, 2, 3, 0]);
        let n = n.unwrap_or_else(|| match input.u8() {
            long @ 240.. => 500 + 97 * usize::from(long - 240),
            short => usize::from(short) + input.pick(&[0, 0, 240]),
        });
        let granularity = match input.u8() {
            0..80 => Granularity::Filter,
            80..100 => Granularity::Tensor,
            100..180 => {
                Granularity::Group(input.pick(&[16, 20, 32, 40, 48, 64, 80, 96, 128, 160, 256, 320, 512, u64::MAX]))
            }
            _ => Granularity::Group(u64::from(input.u8()) + 1),
        };
        let (kind, mut seed) = (input.u8(), input.u64());
        let bytes = input.take(planes * filters * encoding.bytes(n));
        // Exactly as long as it has to be, so that the sanitizer sees the first byte too many.
        let codes = (0..planes * filters * encoding.bytes(n)).map(|i| match (bytes.get(i), kind & 1) {
            (Some(&byte), 0) => byte,
            (Some(&byte), _) => valid(encoding, byte),
            (None, _) => valid(encoding, next(&mut seed) as u8),
        });
        let codes = codes.collect();
        let scales = (planes as u64 * granularity.scales(filters as u64, n as u64)) as usize;
        let scales = (0..scales).map(|_| number(kind >> 4, next(&mut seed)).abs()).collect();
        Self { encoding, shape: [planes, filters, n], granularity, codes, scales, kind, seed }
    }

    fn packed(&self) -> PackedMatrix<'_> {
        PackedMatrix::from_parts(self.encoding, self.shape, self.granularity, &self.codes, &self.scales[..]).unwrap()
    }

    /// Activations: the input's own bits as long as there are any.
    fn activation(&mut self, input: &mut Bytes<'_>) -> f32 {
        let given = input.take(4);
        match given.try_into() {
            Ok(bytes) => f32::from_le_bytes(bytes),
            Err(_) => number(self.kind >> 1 & 7, next(&mut self.seed)),
        }
    }

    /// t of one weight; `None` where the code is not valid.
    fn t(&self, plane: usize, filter: usize, j: usize) -> Option<i8> {
        let bytes = self.encoding.bytes(self.shape[2]);
        let per_byte = self.encoding.weights_per_byte();
        let byte = self.codes[(plane * self.shape[1] + filter) * bytes + j / per_byte];
        let code = match self.encoding {
            Encoding::T2 => Some(byte >> (2 * (j % 4)) & 3).filter(|&code| code < 3),
            Encoding::T5 => Some(byte).filter(|&byte| byte < 243).map(|byte| byte / 3u8.pow((j % 5) as u32) % 3),
            Encoding::B1 => Some((byte >> (j % 8) & 1) * 2),
        };
        code.map(|code| code as i8 - 1)
    }

    /// Where a group is not, few columns of a matrix go another way than an image.
    fn groups_are_whole_lanes(&self) -> bool {
        let lane = 4 * self.encoding.weights_per_byte() as u64;
        !matches!(self.granularity, Granularity::Group(size) if size < self.shape[2] as u64 && size % lane != 0)
    }

    fn alpha(&self, plane: usize, filter: usize, j: usize) -> f64 {
        let [_, filters, n] = self.shape;
        let index = match self.granularity {
            Granularity::Tensor => plane,
            Granularity::Filter => plane * filters + filter,
            Granularity::Group(size) => {
                (plane * filters + filter) * (n as u64).div_ceil(size) as usize + (j as u64 / size) as usize
            }
        };
        f64::from(self.scales[index])
    }

    /// How many roundings the documentation of `Arithmetic` counts.
    fn roundings(&self, arithmetic: Arithmetic) -> f64 {
        let (n, planes) = (self.shape[2] as f64, self.shape[0] as f64);
        let lane = 4 * self.encoding.weights_per_byte() as u64;
        let group = match self.granularity {
            Granularity::Group(size) if size < self.shape[2] as u64 => Some(size),
            _ => None,
        };
        // Groups that are not whole lanes are filled up.
        let (n, group) = match group {
            Some(g) if g % lane != 0 => {
                let filled = g.next_multiple_of(16);
                (((self.shape[2] as u64).div_ceil(g) * filled) as f64, Some(filled))
            }
            group => (n, group),
        };
        match arithmetic {
            Arithmetic::ExactF32 => n / 16.0 + 38.0 + planes,
            Arithmetic::Int8 => n / group.unwrap_or(256).min(256) as f64 + 14.0 + planes,
        }
    }
}

fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    *seed >> 24
}

fn valid(encoding: Encoding, byte: u8) -> u8 {
    match encoding {
        // 3 becomes 1.
        Encoding::T2 => byte & !((byte & byte << 1) & 0xaa),
        Encoding::T5 => byte % 243,
        Encoding::B1 => byte,
    }
}

/// A number of some kind: any bits, whole steps, all of one size, or of moderate size.
fn number(kind: u8, random: u64) -> f32 {
    let random = random as u32;
    match kind & 7 {
        0 => f32::from_bits(random),
        1 => (random % 255) as f32 - 127.0,
        2 => {
            if random % 2 == 0 {
                127.0
            } else {
                -127.0
            }
        }
        3 => f32::from_bits(random & 0x807f_ffff),
        _ => (random % 65_536) as f32 / 32_768.0 - 1.0,
    }
}

fuzz_target!(|data: &[u8]| {
    twn_pack_fuzz::one_thread();
    let mut input = Bytes(data);
    if input.u8() % 4 == 0 { convolution(&mut input) } else { matrix(&mut input) }
});

fn matrix(input: &mut Bytes<'_>) {
    let (filters, columns) = (input.pick(&[1, 2, 3, 4, 5, 8, 9, 0, 17]), input.pick(&[1, 2, 3, 4, 5, 8, 0, 17]));
    let turned = input.u8() % 2 == 0;
    let mut case = Case::new(input, None, filters);
    // Bounded work, here and below.
    let columns = if case.shape.iter().product::<usize>() * columns > 30_000 { 1 + columns % 2 } else { columns };
    let mut x = Array2::zeros((case.shape[2], columns).set_f(turned));
    x.iter_mut().for_each(|x| *x = case.activation(input));
    let mut workspace = Workspace::default();
    for arithmetic in [Arithmetic::ExactF32, Arithmetic::Int8] {
        let mut first: Option<Array2<f32>> = None;
        for isa in Isa::all() {
            let mut y = Array2::from_elem((filters, columns), 7.0);
            let kernel = Kernel::with_isa(arithmetic, isa);
            kernel.matrix(&case.packed(), x.view(), y.view_mut(), &mut workspace).unwrap();
            let first = first.get_or_insert_with(|| y.clone());
            assert!(y.iter().map(|&y| bits(y)).eq(first.iter().map(|&y| bits(y))), "{arithmetic:?} on {}", isa.name());
        }
        for ((filter, c), &y) in first.unwrap().indexed_iter() {
            check(&case, arithmetic, filter, x.column(c).iter().copied(), y);
        }
    }
}

/// One element of a product, where all codes are valid and nothing leaves the range.
fn check(case: &Case, arithmetic: Arithmetic, filter: usize, x: impl Iterator<Item = f32> + Clone, y: f32) {
    let [planes, _, n] = case.shape;
    let largest =
        x.clone().fold(0.0, |max: f64, x| if x.is_nan() { f64::INFINITY } else { max.max(f64::from(x).abs()) });
    if arithmetic == Arithmetic::Int8 && !largest.is_finite() {
        assert!(y.is_nan() || planes == 0, "{y} for a column that is not finite");
        return;
    }
    let (mut sum, mut size, mut scales, mut weights, mut finite) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (j, x) in x.enumerate() {
        let mut weight = 0.0;
        for plane in 0..planes {
            let Some(t) = case.t(plane, filter, j) else { return };
            let alpha = case.alpha(plane, filter, j);
            scales += alpha;
            if t != 0 {
                weight += alpha * f64::from(t);
                sum += alpha * f64::from(t) * f64::from(x);
                if x.is_finite() {
                    finite += f64::from(x).abs();
                    size += alpha * f64::from(x).abs();
                }
            }
        }
        weights += weight.abs();
    }
    let (units, least) = (UNIT * case.roundings(arithmetic), LEAST * (planes * (n + 32)) as f64);
    if !scales.is_finite() || size.max(finite).max(127.0 * scales).max(scales * largest.min(RANGE)) >= RANGE {
        return;
    }
    let y = f64::from(y);
    let limit = match arithmetic {
        _ if !sum.is_finite() => {
            assert!(y == sum || y.is_nan() && sum.is_nan(), "{y} for {sum}");
            return;
        }
        Arithmetic::ExactF32 => units * size + least,
        Arithmetic::Int8 => weights * largest / 254.0 + scales * (units * largest + 127.0 * LEAST) + least,
    };
    assert!((y - sum).abs() <= limit, "{arithmetic:?}: {y:e} for {sum:e} ± {limit:e}");
}

fn convolution(input: &mut Bytes<'_>) {
    let mut two = |from: &[usize]| [input.pick(from), input.pick(from)];
    let (kernel, stride, mut padding) = (two(&[1, 3, 2, 5]), two(&[1, 2, 3, 0, 9]), two(&[0, 1, 2, 7]));
    let (dilation, size) = (two(&[1, 2, 3, 0]), two(&[5, 1, 2, 3, 4, 8, 9, 0]));
    let (groups, per_group) = (input.pick(&[1, 1, 2, 3]), input.pick(&[1, 2, 3, 7, 30]));
    let (mut batch, mut filters) = (input.pick(&[1, 2, 0, 3]), groups * input.pick(&[1, 2, 4, 5, 0]));
    let outputs = (size[0] + 2 * padding[0]) * (size[1] + 2 * padding[1]);
    if per_group * kernel[0] * kernel[1] * filters * batch * outputs > 100_000 {
        (batch, filters, padding) = (1, groups, [padding[0] % 2, padding[1] % 2]);
    }
    let geometry = Conv2d { kernel, stride, padding, dilation, groups };
    let mut case = Case::new(input, Some(per_group * kernel[0] * kernel[1]), filters);
    let mut x = Array4::zeros((batch, groups * per_group, size[0], size[1]));
    x.iter_mut().for_each(|x| *x = case.activation(input));
    let output = geometry.output(size);
    let [height, width] = output.unwrap_or([1, 1]);
    let mut workspace = Workspace::default();
    for arithmetic in [Arithmetic::ExactF32, Arithmetic::Int8] {
        let mut first: Option<Array4<f32>> = None;
        for isa in Isa::all() {
            let mut y = Array4::zeros((batch, filters, height, width));
            let kernel = Kernel::with_isa(arithmetic, isa);
            let done = kernel.conv2d(&case.packed(), None, &geometry, x.view(), y.view_mut(), &mut workspace);
            assert_eq!(done.is_ok(), output.is_some(), "{geometry:?}: {done:?}");
            let first = first.get_or_insert_with(|| y.clone());
            assert!(y.iter().map(|&y| bits(y)).eq(first.iter().map(|&y| bits(y))), "{arithmetic:?} on {}", isa.name());
        }
        let y = first.unwrap();
        if arithmetic == Arithmetic::Int8 || output.is_none() {
            continue;
        }
        // What lies under the filter, one by one, times the filters.
        let each = filters / groups;
        for (image, group) in (0..batch).flat_map(|image| (0..groups).map(move |group| (image, group))) {
            let columns = Array2::from_shape_fn((case.shape[2], height * width), |(j, at)| {
                let (channel, tap) = (j / (kernel[0] * kernel[1]), j % (kernel[0] * kernel[1]));
                let place = |axis: usize, at: usize, tap: usize| {
                    let place = at * stride[axis] + tap * dilation[axis];
                    place.checked_sub(padding[axis]).filter(|&place| place < size[axis])
                };
                let (y, x_place) = (place(0, at / width, tap / kernel[1]), place(1, at % width, tap % kernel[1]));
                y.zip(x_place).map_or(0.0, |(y, x_place)| x[[image, group * per_group + channel, y, x_place]])
            });
            if !case.groups_are_whole_lanes() {
                for (filter, at) in (0..each).flat_map(|filter| (0..height * width).map(move |at| (filter, at))) {
                    let filter = group * each + filter;
                    let y = y[[image, filter, at / width, at % width]];
                    check(&case, arithmetic, filter, columns.column(at).iter().copied(), y);
                }
                continue;
            }
            let mut expected = Array2::zeros((each, height * width));
            let packed = case.packed();
            let rows = packed.rows(group * each..(group + 1) * each);
            let product = Kernel::with_isa(arithmetic, Isa::PORTABLE);
            product.matrix(&rows, columns.view(), expected.view_mut(), &mut workspace).unwrap();
            let y = y.slice(s![image, group * each..(group + 1) * each, .., ..]);
            assert!(y.iter().map(|&y| bits(y)).eq(expected.iter().map(|&y| bits(y))), "{geometry:?}");
        }
    }
}

//! How a tensor's values lie where that is not C order, and reading them in that order. Not here: any format.

use std::ops::Range;

/// How a tensor lies in memory: value (i₀, i₁, …) is number offset + i₀·stride₀ + i₁·stride₁ + … of those of `size`
/// bytes (1, 2, 4 or 8) each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Strided {
    /// Bytes of a value.
    pub size: usize,
    /// The number of the first value.
    pub offset: usize,
    /// The tensor's shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Along each of its axes, how many values neighbours lie apart.
    pub strides: Vec<usize>,
}

impl Strided {
    /// One past the last value that it reaches; `None` where that overflows. Of no values: none.
    pub fn end(&self) -> Option<usize> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let mut last = self.offset;
        for (&dimension, &stride) in self.shape.iter().zip(&self.strides) {
            last = last.checked_add((dimension - 1).checked_mul(stride)?)?;
        }
        last.checked_add(1)
    }

    /// Whether the values lie in C order, side by side.
    pub fn is_contiguous(&self) -> bool {
        if self.shape.contains(&0) {
            return true;
        }
        let mut expected = Some(1usize);
        for (&dimension, &stride) in self.shape.iter().zip(&self.strides).rev() {
            if dimension != 1 && Some(stride) != expected {
                return false;
            }
            expected = expected.and_then(|n| n.checked_mul(dimension));
        }
        true
    }

    /// The axes as they are nested in memory, the outermost first, where the values lie there side by side: without
    /// holes, and none of them twice. `None` where they do not, and for no values.
    pub fn order(&self) -> Option<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.shape.len()).collect();
        // What has a single index lies in front of everything, whatever its stride is.
        let stride = |axis: usize| if self.shape[axis] == 1 { usize::MAX } else { self.strides[axis] };
        order.sort_by_key(|&axis| std::cmp::Reverse(stride(axis)));
        let nested = |of: &[usize]| order.iter().map(|&axis| of[axis]).collect();
        let nested = Self { size: self.size, offset: 0, shape: nested(&self.shape), strides: nested(&self.strides) };
        (!self.shape.contains(&0) && nested.is_contiguous()).then_some(order)
    }

    /// Reads the values `range`, counted in C order, into `out`, which has room for just these. `bytes` has the values up
    /// to [`Strided::end`].
    ///
    /// # Panics
    /// When there are no such values, or `bytes` or `out` do not have what they should.
    pub fn read(&self, bytes: &[u8], range: Range<usize>, out: &mut [u8]) {
        assert_eq!(out.len(), range.len() * self.size, "room for {range:?}");
        self.part(bytes, self.offset, 0, range, out);
    }

    /// The same of the values along `axis` and all behind it, from value number `from` on.
    fn part(&self, bytes: &[u8], from: usize, axis: usize, range: Range<usize>, out: &mut [u8]) {
        if range.is_empty() {
            return;
        }
        let row: usize = self.shape.iter().skip(axis + 1).product();
        let (first, last) = (range.start / row, (range.end - 1) / row);
        let stride = self.strides.get(axis).copied().unwrap_or_default();
        let inside = |at: usize| at - first * row;
        if first == last && range.len() < row {
            let range = inside(range.start)..inside(range.end);
            return self.part(bytes, from + first * stride, axis + 1, range, out);
        }
        // The rest of a row, whole rows, the beginning of one.
        let (whole, end) = (range.start.next_multiple_of(row), range.end / row * row);
        let (head, out) = out.split_at_mut((whole - range.start) * self.size);
        let (rows, tail) = out.split_at_mut((end - whole) * self.size);
        if !head.is_empty() {
            self.part(bytes, from + first * stride, axis + 1, inside(range.start)..row, head);
        }
        if !rows.is_empty() {
            self.gather(bytes, from + whole / row * stride, axis, (end - whole) / row, rows);
        }
        if !tail.is_empty() {
            self.part(bytes, from + last * stride, axis + 1, 0..range.end - end, tail);
        }
    }

    /// The values of `count` indices along `axis` and all behind it, from value number `from`, in C order. Goes
    /// through the source in order, as far as that can be.
    fn gather(&self, bytes: &[u8], from: usize, axis: usize, count: usize, out: &mut [u8]) {
        // [length, stride in the source, stride in `out`], both in values.
        let mut axes: Vec<[usize; 3]> = Vec::new();
        let mut stride = 1;
        for at in (axis..self.shape.len()).rev() {
            let length = if at == axis { count } else { self.shape[at] };
            match axes.last_mut() {
                _ if length == 1 => {}
                // Two that are nested in the source as in `out` are one.
                Some([inner, source, _]) if *inner * *source == self.strides[at] => *inner *= length,
                _ => axes.push([length, self.strides[at], stride]),
            }
            stride *= length;
        }
        axes.sort_by_key(|&[_, source, _]| std::cmp::Reverse(source));
        let inner = axes.pop().unwrap_or([1, 1, 1]);
        // Where neighbours in the source are none in `out`, those that are go beside them.
        let neighbours = axes.iter().position(|&[_, _, target]| target == 1);
        let [lines, apart, _] = neighbours.map_or([1, 1, 1], |at| axes.remove(at));
        let lengths: Vec<usize> = axes.iter().map(|axis| axis[0]).collect();
        let mut indices = vec![0; axes.len()];
        let size = self.size;
        loop {
            let at = |which: usize| axes.iter().zip(&indices).map(|(axis, i)| axis[which] * i).sum::<usize>();
            let (read, write) = ((from + at(1)) * size, at(2) * size);
            let (bytes, out) = (&bytes[read..], &mut out[write..]);
            match size {
                _ if inner[1] == 1 && inner[2] == 1 => {
                    out[..inner[0] * size].copy_from_slice(&bytes[..inner[0] * size]);
                }
                1 => copy::<1>(bytes, out, inner, [lines, apart]),
                2 => copy::<2>(bytes, out, inner, [lines, apart]),
                4 => copy::<4>(bytes, out, inner, [lines, apart]),
                _ => copy::<8>(bytes, out, inner, [lines, apart]),
            }
            if !advance(&mut indices, &lengths) {
                return;
            }
        }
    }
}

/// Values on the side of a tile.
const TILE: usize = 32;

/// Values of N bytes along two axes, the second of which has neighbours in `to`: `inner` is its length, its stride in `from`
/// and that in `to`, `across` the first two of these. Tile by tile, so that what lies far apart on either side is in the
/// cache while its neighbours are copied.
fn copy<const N: usize>(from: &[u8], to: &mut [u8], inner: [usize; 3], across: [usize; 2]) {
    let (from, to) = (from.as_chunks::<N>().0, to.as_chunks_mut::<N>().0);
    let mut tile = [[[0; N]; TILE]; TILE];
    for outer in (0..across[0]).step_by(TILE) {
        for first in (0..inner[0]).step_by(TILE) {
            let (count, lines) = (TILE.min(inner[0] - first), TILE.min(across[0] - outer));
            for (line, values) in tile[..lines].iter_mut().enumerate() {
                let from = &from[(outer + line) * across[1] + first * inner[1]..];
                match inner[1] {
                    1 => values[..count].copy_from_slice(&from[..count]),
                    stride => (0..count).for_each(|i| values[i] = from[i * stride]),
                }
            }
            for at in 0..count {
                let to = &mut to[(first + at) * inner[2] + outer..];
                to.iter_mut().zip(&tile[..lines]).for_each(|(to, line)| *to = line[at]);
            }
        }
    }
}

/// The next indices in C order; whether there are any.
fn advance(indices: &mut [usize], lengths: &[usize]) -> bool {
    for (i, &length) in indices.iter_mut().zip(lengths).rev() {
        *i += 1;
        if *i < length {
            return true;
        }
        *i = 0;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Permuted, expanded and cut, over the side of a tile and under it, in every size: against plain indexing.
    #[test]
    fn any_strides_come_out_in_c_order() {
        for size in [1, 2, 4, 8] {
            for (shape, strides, offset) in [
                (vec![70, 40], vec![1, 70], 0),
                (vec![33, 5, 65], vec![5, 1, 165], 3),
                (vec![5, 65, 33], vec![1, 165, 5], 0),
                (vec![40, 3], vec![0, 1], 2),
                (vec![3, 40], vec![1, 0], 2),
                (vec![64, 33], vec![99, 3], 1),
                (vec![33, 64], vec![3, 99], 1),
                (vec![2, 3, 4, 5], vec![1, 40, 2, 8], 0),
                (vec![7], vec![9], 5),
            ] {
                let strided = Strided { size, offset, shape, strides };
                let source: Vec<u8> = (0..strided.end().unwrap() * size).map(|i| (i * 7919 % 251) as u8).collect();
                let (mut expected, mut indices) = (Vec::<u8>::new(), vec![0; strided.shape.len()]);
                loop {
                    let at = offset + indices.iter().zip(&strided.strides).map(|(i, s)| i * s).sum::<usize>();
                    expected.extend(&source[at * size..(at + 1) * size]);
                    if !advance(&mut indices, &strided.shape) {
                        break;
                    }
                }
                let n = expected.len() / size;
                for range in [0..n, 0..1, n - 1..n, n / 3..n / 3, 1..n / 2, n / 3..n - 1] {
                    let mut found = vec![0; range.len() * size];
                    strided.read(&source, range.clone(), &mut found);
                    assert!(found == expected[range.start * size..range.end * size], "{strided:?} {range:?}");
                }
            }
        }
    }
}

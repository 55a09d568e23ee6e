//! Checks every byte of a `.twn` file: checksums, codes, scales, padding; and (`against`) what it holds with the
//! checkpoint it was made from. All problems are collected, not only the first.
//! Not here: prefix and index, which opening a [`Container`] checks.

mod against;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crc32fast::Hasher;
use rayon::prelude::*;
use serde::Serialize;

pub use self::against::verify_against;
use crate::container::{self, Body, Container, DenseEntry, Int8Entry, Section, TensorEntry, TernaryEntry};
use crate::error::ContainerProblem as Problem;
use crate::pack::Counts;
use crate::ternarize::ScaleDtype;
use crate::{Error, Isa, Result};

/// Bytes per piece of work.
const PIECE: usize = 1 << 18;

/// Bytes of codes, about, that are checked before they are summed: the nearest cache still has them then, and the memory
/// does not rest for long.
const STEP: usize = 1 << 13;

/// What [`verify`] found.
#[must_use]
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Verification {
    /// Tensors looked at.
    pub tensors: u64,
    /// Bytes of the file, all of them looked at.
    pub bytes: u64,
    /// Dense tensors that the file says were changed when it was packed: not the checkpoint's bytes.
    pub repaired: u64,
    /// Everything that is wrong, in the order of the file; empty for a good file.
    pub problems: Vec<String>,
}

impl Verification {
    /// Nothing is wrong so far.
    fn of(container: &Container) -> Self {
        let tensors = &container.index().tensors;
        Self {
            tensors: tensors.len() as u64,
            repaired: tensors.iter().filter(|entry| is_repaired(entry)).count() as u64,
            bytes: container.bytes().len() as u64,
            problems: Vec::new(),
        }
    }

    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Checks every section's checksum, every code, every scale and all padding.
///
/// # Errors
/// [`Error::Cancelled`]. What is wrong with the file is in the result.
pub fn verify(container: &Container, cancel: Option<&AtomicBool>) -> Result<Verification> {
    verify_with_progress(container, cancel, &|_, _| {})
}

/// [`verify`]; `progress` is told now and then, from any thread, how many bytes of how many are done.
///
/// # Errors
/// Those of [`verify`].
pub fn verify_with_progress(
    container: &Container,
    cancel: Option<&AtomicBool>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Verification> {
    let isa = Isa::detect()?;
    let mut result = Verification::of(container);
    let pieces = pieces(container);
    let (done, total) = (AtomicU64::new(0), pieces.iter().map(Piece::bytes).sum());
    let checked: Vec<Checked> = pieces
        .par_iter()
        .map(|piece| {
            check_cancelled(cancel)?;
            let checked = piece.check(container, isa);
            progress(done.fetch_add(piece.bytes(), Ordering::Relaxed) + piece.bytes(), total);
            Ok(checked)
        })
        .collect::<Result<_>>()?;
    let padding = checked.iter().filter_map(|checked| checked.padding);
    result.problems.extend(padding.map(|(offset, found)| Problem::Padding { offset, found }.to_string()));
    let mut checked = pieces.iter().zip(checked).peekable();
    for (t, entry) in container.index().tensors.iter().enumerate() {
        let mut whole = Checked::default();
        let mut problems = Vec::new();
        for (s, (part, section)) in entry.sections().enumerate() {
            let (mut crc, mut problem) = (Hasher::new(), None);
            while let Some((_, next)) = checked.next_if(|(piece, _)| (piece.tensor, piece.part) == (t, s)) {
                crc.combine(&next.crc);
                whole.counts = whole.counts.plus(next.counts);
                whole.scales = whole.scales.join(next.scales);
                // One line per section is enough; a damaged section may hold thousands.
                problem = problem.or(next.problem);
            }
            let found = crc.finalize();
            if found != section.crc32 {
                let what = format!("tensor `{}`: {part}", entry.name);
                problems.push(Problem::Checksum { what, expected: section.crc32, found });
            }
            problems.extend(problem);
        }
        if problems.is_empty() {
            problems.extend(whole.against_stats(entry));
        }
        result.problems.extend(problems.iter().map(ToString::to_string));
    }
    Ok(result)
}

fn check_cancelled(cancel: Option<&AtomicBool>) -> Result<()> {
    let cancelled = cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed));
    if cancelled { Err(Error::Cancelled) } else { Ok(()) }
}

/// The first byte behind a section, and its offset, that should be zero and is not.
fn bad_padding(container: &Container, section: Section) -> Option<(u64, u8)> {
    let end = section.offset + section.length;
    let padding = &container.bytes()[end as usize..container::align(end)? as usize];
    (end..).zip(padding.iter().copied()).find(|&(_, byte)| byte != 0)
}

/// Bytes of one section: whole filters where they are codes and fit.
struct Piece {
    tensor: usize,
    part: usize,
    section: Section,
    start: usize,
    end: usize,
}

/// What the bytes of a piece, or of a tensor, say.
#[derive(Default)]
struct Checked {
    crc: Hasher,
    counts: Counts,
    scales: Range,
    problem: Option<Problem>,
    /// See [`bad_padding`].
    padding: Option<(u64, u8)>,
}

/// Smallest and largest of some scales; no scale at all is (∞, −∞).
#[derive(Clone, Copy)]
struct Range(f32, f32);

impl Default for Range {
    fn default() -> Self {
        Self(f32::INFINITY, f32::NEG_INFINITY)
    }
}

impl Range {
    fn join(self, other: Self) -> Self {
        Self(self.0.min(other.0), self.1.max(other.1))
    }
}

impl Checked {
    /// The index repeats what codes and scales say; it must not say anything else.
    fn against_stats(&self, entry: &TensorEntry) -> Option<Problem> {
        let message = |message| Some(Problem::Entry { tensor: entry.name.clone(), message });
        let alpha = match entry.body() {
            Body::Dense(_) => return None,
            Body::Int8(Int8Entry { stats, .. }) => stats.alpha,
            Body::Ternary(TernaryEntry { stats, .. }) => {
                let Counts { negative, zeros, positive } = self.counts;
                if (stats.negative, stats.zeros, stats.positive) != (negative, zeros, positive) {
                    return message(format!(
                        "statistics count {}, {}, {} codes −1, 0, +1, the codes are {negative}, {zeros}, {positive}; pack it again",
                        stats.negative, stats.zeros, stats.positive
                    ));
                }
                stats.alpha
            }
        };
        let Range(min, max) = self.scales;
        if (alpha.min, alpha.max) != (f64::from(min), f64::from(max)) {
            return message(format!(
                "statistics say that scales go from {:e} to {:e}, they go from {min:e} to {max:e}; pack it again",
                alpha.min, alpha.max
            ));
        }
        None
    }
}

fn pieces(container: &Container) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (tensor, entry) in container.index().tensors.iter().enumerate() {
        for (part, (_, section)) in entry.sections().enumerate() {
            let step = match entry.body() {
                Body::Ternary(ternary) if part == 0 => {
                    let (_, n) = entry.filters(ternary.axis);
                    let row = ternary.encoding.bytes(n as usize).max(1);
                    if row < PIECE { PIECE / row * row } else { PIECE }
                }
                _ => PIECE,
            };
            let length = section.length as usize;
            pieces.extend((0..length).step_by(step).map(|start| Piece {
                tensor,
                part,
                section,
                start,
                end: (start + step).min(length),
            }));
        }
    }
    pieces
}

impl Piece {
    fn bytes(&self) -> u64 {
        (self.end - self.start) as u64
    }

    fn check(&self, container: &Container, isa: Isa) -> Checked {
        let bytes = &container.section(self.section)[self.start..self.end];
        let entry = &container.index().tensors[self.tensor];
        let mut checked = Checked::default();
        if self.end as u64 == self.section.length {
            checked.padding = bad_padding(container, self.section);
        }
        match entry.body() {
            Body::Dense(_) => {}
            Body::Ternary(ternary) if self.part == 0 => {
                // Whole filters, as in pieces.
                let row = ternary.encoding.bytes(entry.filters(ternary.axis).1 as usize).max(1);
                let mut at = self.start;
                for bytes in bytes.chunks(row * (STEP / row).max(1)) {
                    match check_codes(entry, ternary, bytes, at, isa) {
                        Ok(counts) => checked.counts = checked.counts.plus(counts),
                        Err(problem) => checked.problem = checked.problem.or(Some(problem)),
                    }
                    checked.crc.update(bytes);
                    at += bytes.len();
                }
                return checked;
            }
            Body::Ternary(ternary) => checked.check_scales(entry, ternary.scale_dtype, bytes, self.start),
            Body::Int8(int8) if self.part == 0 => {
                let n = entry.filters(int8.axis).1 as usize;
                let bad = bytes.iter().position(|&byte| byte == 0x80).map(|at| self.start + at);
                checked.problem = bad.map(|at| Problem::Entry {
                    tensor: entry.name.clone(),
                    message: format!(
                        "filter {}: the code of weight {} is -128, it should be -127 to 127; pack it again",
                        at / n,
                        at % n
                    ),
                });
            }
            Body::Int8(int8) => checked.check_scales(entry, int8.scale_dtype, bytes, self.start),
        }
        checked.crc.update(bytes);
        checked
    }
}

impl Checked {
    /// Scales that begin at byte `start` of their section. Floats that are not negative order as their bits do, and below
    /// those of every other float; so vectors can compare them.
    fn check_scales(&mut self, entry: &TensorEntry, dtype: ScaleDtype, bytes: &[u8], start: usize) {
        let value = |bits: u32| match dtype {
            ScaleDtype::F32 => f32::from_bits(bits),
            ScaleDtype::F16 => half::f16::from_bits(bits as u16).to_f32_const(),
        };
        let (min, max, bad) = match dtype {
            ScaleDtype::F32 => extremes(bytes, u32::from_le_bytes, f32::INFINITY.to_bits()),
            ScaleDtype::F16 => {
                extremes(bytes, |half| u32::from(u16::from_le_bytes(half)), half::f16::INFINITY.to_bits().into())
            }
        };
        self.scales = self.scales.join(Range(value(min), value(max)));
        self.problem = bad.map(|(at, bits)| Problem::Scale {
            tensor: entry.name.clone(),
            index: start / dtype.size() + at,
            found: value(bits),
        });
    }
}

/// Smallest and largest bits, and the place and bits of the first that are not below `limit`.
fn extremes<const N: usize>(bytes: &[u8], bits: fn([u8; N]) -> u32, limit: u32) -> (u32, u32, Option<(usize, u32)>) {
    let all = bytes.as_chunks().0.iter().map(|chunk| bits(*chunk));
    let (min, max) = all.clone().fold((u32::MAX, 0), |(min, max), bits| (min.min(bits), max.max(bits)));
    let bad = if max < limit { None } else { all.enumerate().find(|(_, bits)| *bits >= limit) };
    (min, max, bad)
}

/// Counts the codes in these bytes of a codes section, or finds the first filter that holds what no
/// writer would write.
fn check_codes(
    entry: &TensorEntry,
    ternary: &TernaryEntry,
    bytes: &[u8],
    start: usize,
    isa: Isa,
) -> Result<Counts, Problem> {
    let (filters, n) = entry.filters(ternary.axis);
    let (n, row, per_byte) = (n as usize, ternary.encoding.bytes(n as usize), ternary.encoding.weights_per_byte());
    // Filters that fill their last byte leave no seam: all at once, one by one only to name the bad one.
    if n % per_byte == 0
        && let Ok(counts) = ternary.encoding.check(isa, bytes, bytes.len() * per_byte)
    {
        return Ok(counts);
    }
    let mut counts = Counts::default();
    let mut at = 0;
    while at < bytes.len() {
        let (filter, within) = ((start + at) / row, (start + at) % row);
        let length = (row - within).min(bytes.len() - at);
        let weights = (length * per_byte).min(n - within * per_byte);
        let found = ternary.encoding.check_from(isa, &bytes[at..at + length], weights, within);
        counts = counts.plus(found.map_err(|message| Problem::Code {
            tensor: entry.name.clone(),
            plane: filter / filters as usize,
            filter: filter % filters as usize,
            message,
        })?);
        at += length;
    }
    Ok(counts)
}

fn is_repaired(entry: &TensorEntry) -> bool {
    matches!(entry.body(), Body::Dense(DenseEntry { repaired: Some(_), .. }))
}

//! Convolutions of a frozen network in bf16 on the tiles (AMX) or vectors (AVX-512) of x86: products of
//! bf16 values, summed in f32.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::geometry::Rows;
use super::indirect_gemm::Activation;
use super::{Shared, parallel};
use crate::buffers::{Buf, Pool};

/// Values of the depth that one tile product takes, and the columns and rows of a block of four tiles.
const DEPTH: usize = 32;
const BLOCK: usize = 32;
/// Values of a block of weights: `DEPTH` by `BLOCK`.
const WEIGHTS: usize = DEPTH * BLOCK;
/// Values of gathered rows that stay in the second-level cache.
const GATHERED: usize = 384 * 1024;
/// Rows that vectors multiply at a time.
const LINES: usize = 14;

/// What multiplies values in bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Tiles (AMX).
    Tiles,
    /// Vectors (AVX-512), which multiply widened values.
    Vectors,
}

/// What this machine has and lets this process use: tiles before vectors.
pub(crate) fn unit() -> Option<Unit> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        use crate::element::{Isa, isa};
        use std::sync::OnceLock;
        static FOUND: OnceLock<Option<Unit>> = OnceLock::new();
        *FOUND.get_or_init(|| if isa() == Isa::Avx512 { x86::found() } else { None })
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    None
}

/// Rounds to the nearest bf16, ties to even; a value that is not a number stays none.
pub(crate) fn narrow(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// The value of a bf16.
pub(crate) fn widen(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Converts many values.
pub(crate) fn narrow_all(from: &[f32], to: &mut [u16]) {
    convert(from, to, narrow);
}

/// Converts many values.
pub(crate) fn widen_all(from: &[u16], to: &mut [f32]) {
    convert(from, to, widen);
}

fn convert<A: Copy + Sync, B: Send>(from: &[A], to: &mut [B], f: impl Fn(A) -> B + Sync + Send) {
    const STEP: usize = 64 * 1024;
    assert_eq!(from.len(), to.len());
    let target = Shared::new(to);
    parallel(from.len().div_ceil(STEP), |task| {
        let from = &from[task * STEP..((task + 1) * STEP).min(from.len())];
        // SAFETY: one stretch per task.
        let to = unsafe { target.range(task * STEP, from.len()) };
        to.iter_mut().zip(from).for_each(|(t, x)| *t = f(*x));
    });
}

/// Folded weights as the tiles read them: `[columns / 32][depth / 32][2][16][16][2]`.
#[derive(Debug)]
pub(crate) struct Weights {
    tiles: Buf<u16>,
    /// Kernel elements times inputs, filled up to whole blocks.
    depth: usize,
    outputs: usize,
    bias: Vec<f32>,
}

impl Weights {
    /// From `[outputs, inner, taps]`.
    pub(crate) fn new(
        plain: &[f32],
        bias: Vec<f32>,
        [outputs, inner, taps]: [usize; 3],
        pool: &Arc<Pool<u16>>,
    ) -> Self {
        assert!(plain.len() == outputs * inner * taps && bias.len() == outputs);
        let depth = (inner * taps).next_multiple_of(DEPTH);
        let mut tiles = pool.keep(outputs.div_ceil(BLOCK) * BLOCK * depth);
        for o in 0..outputs {
            for tap in 0..taps {
                for i in 0..inner {
                    let d = tap * inner + i;
                    let block = (o / BLOCK * (depth / DEPTH) + d / DEPTH) * WEIGHTS;
                    let (half, column) = (o % BLOCK / 16, o % 16);
                    let at = block + half * (WEIGHTS / 2) + d % DEPTH / 2 * 32 + column * 2 + d % 2;
                    tiles[at] = narrow(plain[(o * inner + i) * taps + tap]);
                }
            }
        }
        Self { tiles, depth, outputs, bias }
    }
}

/// `target[row] = act(bias + sum over taps of source[row of tap] * weight[tap] (+ shortcut[row]))`.
pub(crate) struct Convolution<'a> {
    pub(crate) images: usize,
    /// Tables of the forward pass; target rows follow one another.
    pub(crate) rows: &'a Rows,
    pub(crate) source: &'a [u16],
    /// Values from one source image to the next.
    pub(crate) source_len: usize,
    pub(crate) weights: &'a Weights,
    pub(crate) shortcut: Option<&'a [u16]>,
    pub(crate) act: Activation,
    pub(crate) target: &'a mut [u16],
    /// At least [`Unit::scratch_len`].
    pub(crate) scratch: &'a mut [u16],
}

impl Unit {
    /// Rows of a task: a whole number of blocks whose gathered values stay in the cache.
    fn task_rows(self, depth: usize) -> usize {
        match self {
            Self::Tiles => (GATHERED / depth / BLOCK).clamp(1, 8) * BLOCK,
            Self::Vectors => (GATHERED / 2 / depth / LINES).clamp(1, 16) * LINES,
        }
    }

    /// 16-bit values of gathered rows that a thread holds.
    fn held(self, depth: usize) -> usize {
        match self {
            Self::Tiles => self.task_rows(depth) * depth,
            Self::Vectors => 2 * self.task_rows(depth) * depth,
        }
    }

    /// Values of scratch memory of a convolution with these weights.
    pub(crate) fn scratch_len(self, weights: &Weights) -> usize {
        rayon::current_num_threads() * self.held(weights.depth)
    }
}

impl Convolution<'_> {
    /// Runs it on that unit, which the machine has.
    pub(crate) fn run(self, on: Unit) {
        let (r, w) = (self.rows, self.weights);
        let rows = self.images * r.p;
        let taps = r.taps.iter().max().map_or(0, |t| t + 1);
        assert!(unit().is_some_and(|best| best == on || on == Unit::Vectors), "the machine has no {on:?}");
        assert!(taps * r.kc <= w.depth && r.table.len() == r.taps.len() * r.p);
        let reach = r.table.iter().max().map_or(0, |m| usize::try_from(*m + 1).unwrap_or(0));
        assert!(reach == 0 || reach - 1 + r.kc <= self.source_len);
        assert!(self.source.len() >= self.images * self.source_len);
        assert!(self.target.len() == rows * w.outputs);
        assert!(self.shortcut.is_none_or(|s| s.len() == self.target.len()));
        assert!(self.scratch.len() >= on.scratch_len(w));
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        {
            let per_task = on.task_rows(w.depth);
            // A kernel of one pixel and stride 1 reads its rows where they lie.
            let in_place = r.taps.len() == 1
                && r.kc == w.depth
                && self.source_len == r.p * r.kc
                && r.table.iter().enumerate().all(|(q, at)| *at as usize == q * r.kc);
            let (target, scratch) = (Shared::new(self.target), Shared::new(self.scratch));
            let job = x86::Job {
                rows: r,
                source: self.source,
                source_len: self.source_len,
                weights: w,
                shortcut: self.shortcut,
                low: if self.act == Activation::None { f32::NEG_INFINITY } else { 0.0 },
                high: if self.act == Activation::Relu6 { 6.0 } else { f32::INFINITY },
                in_place,
            };
            let held = on.held(w.depth);
            parallel(rows.div_ceil(per_task), |task| {
                let first = task * per_task;
                let count = per_task.min(rows - first);
                let slot = rayon::current_thread_index().unwrap_or(0);
                // SAFETY: one stretch of rows per task, one stretch of scratch memory per thread; the
                // instructions exist by the assertion above.
                unsafe {
                    let out = target.range(first * w.outputs, count * w.outputs);
                    let gathered = scratch.range(slot * held, held);
                    match on {
                        Unit::Tiles => x86::on_tiles(&job, first, out, gathered),
                        // Any bits are an f32; buffers begin with a line of the cache.
                        Unit::Vectors => x86::on_vectors(&job, first, out, gathered.align_to_mut().1),
                    }
                }
            });
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_nearest_even() {
        for (x, want) in [(1.0f32, 0x3f80), (1.003_906_2, 0x3f80), (1.007, 0x3f81), (-0.0, 0x8000)] {
            assert_eq!(narrow(x), want, "{x}");
        }
        assert!(widen(narrow(f32::NAN)).is_nan());
        assert_eq!(widen(narrow(f32::INFINITY)), f32::INFINITY);
        assert_eq!(widen(narrow(f32::MAX)), f32::INFINITY);
    }

    /// Each unit that the machine has, on odd sizes: exact sums of the rounded values, rounded once.
    #[test]
    fn units_agree_with_exact_sums() {
        use crate::kernels::geometry::{ConvGeo, ConvSpec};
        let pool = Arc::new(Pool::default());
        let value = |i: usize| narrow(((i * 7919 + 13) % 257) as f32 / 64.0 - 2.0);
        for (inputs, outputs, kernel, images, side) in [(32, 64, 1, 2, 5), (40, 37, 3, 3, 4), (7, 5, 1, 1, 1)]
        {
            let geo = ConvGeo::new(ConvSpec::new(inputs, outputs, kernel), side, side).unwrap();
            if geo.padded.is_some() {
                continue;
            }
            let taps = kernel * kernel;
            let plain: Vec<f32> = (0..outputs * inputs * taps).map(|i| widen(value(3 * i))).collect();
            let bias: Vec<f32> = (0..outputs).map(|o| o as f32 / 8.0).collect();
            let weights = Weights::new(&plain, bias.clone(), [outputs, inputs, taps], &pool);
            let source: Vec<u16> = (0..images * geo.source_len()).map(value).collect();
            let shortcut: Vec<u16> = (0..images * geo.forward.p * outputs).map(|i| value(5 * i)).collect();
            let mut want = Vec::new();
            for (row, s) in shortcut.chunks(outputs).enumerate() {
                let (image, q) = (row / geo.forward.p, row % geo.forward.p);
                for o in 0..outputs {
                    let mut sum = f64::from(bias[o]) + f64::from(widen(s[o]));
                    for (t, tap) in geo.forward.taps.iter().enumerate() {
                        if let Ok(at) = usize::try_from(geo.forward.table[t * geo.forward.p + q]) {
                            for i in 0..inputs {
                                let x = source[image * geo.source_len() + at + i];
                                sum += f64::from(widen(x)) * f64::from(plain[(o * inputs + i) * taps + tap]);
                            }
                        }
                    }
                    want.push(sum.max(0.0));
                }
            }
            for on in [Unit::Vectors, Unit::Tiles] {
                if unit().is_none_or(|best| best != on && on == Unit::Tiles) {
                    continue;
                }
                let (mut target, mut scratch) = (vec![0; want.len()], pool.take(on.scratch_len(&weights)));
                Convolution {
                    images,
                    rows: &geo.forward,
                    source: &source,
                    source_len: geo.source_len(),
                    weights: &weights,
                    shortcut: Some(&shortcut),
                    act: Activation::Relu,
                    target: &mut target,
                    scratch: &mut scratch,
                }
                .run(on);
                for (i, (x, w)) in target.iter().zip(&want).enumerate() {
                    let x = f64::from(widen(*x));
                    assert!((x - w).abs() <= w.abs() / 250.0, "{on:?}: {x} in place of {w} at {i}");
                }
            }
        }
    }
}

//! Convolutions of a frozen network in bf16 on the tile unit of x86 (AMX): products of bf16 values,
//! summed in f32.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::geometry::Rows;
use super::tap_gemm::Act;
use super::{Shared, parallel};
use crate::buffers::{Buf, Pool};

/// Values of the depth that one tile product takes, and the columns and rows of a block of four tiles.
const DEPTH: usize = 32;
const BLOCK: usize = 32;
/// Values of a block of weights: `DEPTH` by `BLOCK`.
const WEIGHTS: usize = DEPTH * BLOCK;
/// Values of gathered rows that stay in the second-level cache.
const GATHERED: usize = 384 * 1024;

/// Whether this machine has tiles for bf16 and lets this process use them.
pub(crate) fn available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        use crate::real::{Isa, isa};
        use std::sync::OnceLock;
        static FOUND: OnceLock<bool> = OnceLock::new();
        *FOUND.get_or_init(|| isa() == Isa::Avx512 && x86::permitted())
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
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
        let mut tiles = pool.take(outputs.div_ceil(BLOCK) * BLOCK * depth);
        tiles.fill(0);
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
    pub(crate) act: Act,
    pub(crate) target: &'a mut [u16],
    /// At least [`scratch_len`].
    pub(crate) scratch: &'a mut [u16],
}

/// Rows of a task: a whole number of blocks whose gathered values stay in the cache.
fn task_rows(depth: usize) -> usize {
    (GATHERED / depth / BLOCK).clamp(1, 8) * BLOCK
}

/// Values of scratch memory of a convolution with these weights.
pub(crate) fn scratch_len(weights: &Weights) -> usize {
    rayon::current_num_threads() * task_rows(weights.depth) * weights.depth
}

impl Convolution<'_> {
    /// Runs it; only where [`available`].
    pub(crate) fn run(self) {
        let (r, w) = (self.rows, self.weights);
        let rows = self.images * r.p;
        let taps = r.taps.iter().max().map_or(0, |t| t + 1);
        assert!(available(), "the machine has no tiles");
        assert!(taps * r.kc <= w.depth && r.table.len() == r.taps.len() * r.p);
        let reach = r.table.iter().max().map_or(0, |m| usize::try_from(*m + 1).unwrap_or(0));
        assert!(reach == 0 || reach - 1 + r.kc <= self.source_len);
        assert!(self.source.len() >= self.images * self.source_len);
        assert!(self.target.len() == rows * w.outputs);
        assert!(self.shortcut.is_none_or(|s| s.len() == self.target.len()));
        assert!(self.scratch.len() >= scratch_len(w));
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        {
            let per_task = task_rows(w.depth);
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
                low: if self.act == Act::None { f32::NEG_INFINITY } else { 0.0 },
                high: if self.act == Act::Relu6 { 6.0 } else { f32::INFINITY },
                in_place,
            };
            parallel(rows.div_ceil(per_task), |task| {
                let first = task * per_task;
                let count = per_task.min(rows - first);
                let slot = rayon::current_thread_index().unwrap_or(0);
                // SAFETY: one stretch of rows per task, one stretch of scratch memory per thread; the
                // instructions exist by the assertion above.
                unsafe {
                    let out = target.range(first * w.outputs, count * w.outputs);
                    let gathered = scratch.range(slot * per_task * w.depth, per_task * w.depth);
                    x86::rows(&job, first, out, gathered);
                }
            });
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use super::{BLOCK, DEPTH, Rows, WEIGHTS, Weights};

    /// Whether the processor has tiles for bf16 and the kernel lets this process use their state.
    pub(super) fn permitted() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XTILEDATA: libc::c_long = 18;
        let edx = __cpuid_count(7, 0).edx;
        let has = edx & (1 << 22) != 0 && edx & (1 << 24) != 0;
        // SAFETY: asks for a permission; touches no memory.
        has && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512bw")
            && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0
    }

    pub(super) struct Job<'a> {
        pub(super) rows: &'a Rows,
        pub(super) source: &'a [u16],
        pub(super) source_len: usize,
        pub(super) weights: &'a Weights,
        pub(super) shortcut: Option<&'a [u16]>,
        pub(super) low: f32,
        pub(super) high: f32,
        pub(super) in_place: bool,
    }

    /// Palette 1, eight tiles of 16 rows of 64 bytes.
    #[repr(C, align(64))]
    struct Shape {
        palette: u8,
        start: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }

    static SHAPE: Shape = Shape {
        palette: 1,
        start: 0,
        reserved: [0; 14],
        bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    /// A block of sums, whose rows begin with a line of the cache.
    #[repr(align(64))]
    struct Sums([f32; BLOCK * BLOCK]);

    /// Output rows from `first` on, as many as `out` has.
    ///
    /// # Safety
    /// The machine has the instructions, `Convolution::run` has seen the bounds.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    pub(super) unsafe fn rows(job: &Job, first: usize, out: &mut [u16], gathered: &mut [u16]) {
        let (w, r) = (job.weights, job.rows);
        let (depth, n) = (w.depth, w.outputs);
        let count = out.len() / n;
        let whole = count / BLOCK * BLOCK;
        // Rows that are read where they lie; the rest is gathered.
        let lying = if job.in_place { whole } else { 0 };
        for row in lying..count {
            let (image, q) = ((first + row) / r.p, (first + row) % r.p);
            let to = &mut gathered[row * depth..(row + 1) * depth];
            if r.taps.len() * r.kc < depth {
                to.fill(0);
            }
            for (t, tap) in r.taps.iter().enumerate() {
                let to = &mut to[tap * r.kc..(tap + 1) * r.kc];
                match usize::try_from(r.table[t * r.p + q]) {
                    Ok(at) => {
                        let from = image * job.source_len + at;
                        to.copy_from_slice(&job.source[from..from + r.kc]);
                    }
                    Err(_) => to.fill(0),
                }
            }
        }
        let steps = depth / DEPTH;
        let mut sums = Sums([0.0; BLOCK * BLOCK]);
        // SAFETY: tiles are set up and given back here; all pointers stay inside their slices: blocks of
        // rows in the source or in the gathered rows, whole blocks of weights.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const SHAPE, options(nostack, readonly));
            for column in (0..n).step_by(BLOCK) {
                let weights = w.tiles.as_ptr().add(column / BLOCK * steps * WEIGHTS);
                for row in (0..count).step_by(BLOCK) {
                    let a = if row < lying {
                        job.source.as_ptr().add((first + row) * depth)
                    } else {
                        gathered.as_ptr().add(row * depth)
                    };
                    // What the block will touch at its end comes while the products run.
                    let rows = (count - row).min(BLOCK);
                    for i in 0..rows {
                        let at = (row + i) * n + column;
                        _mm_prefetch::<_MM_HINT_ET0>(out.as_ptr().add(at).cast());
                        if let Some(s) = job.shortcut {
                            _mm_prefetch::<_MM_HINT_T0>(s.as_ptr().add(first * n + at).cast());
                        }
                    }
                    product(a, depth, weights, steps, &mut sums.0);
                    finish(job, &sums.0, first, row, rows, column, out);
                }
            }
            asm!("tilerelease", options(nostack, nomem));
        }
    }

    /// `sums = a b` for 32 rows of `a`, `depth` values apart, and 32 columns.
    #[inline(always)]
    unsafe fn product(
        a: *const u16,
        depth: usize,
        b: *const u16,
        steps: usize,
        sums: &mut [f32; BLOCK * BLOCK],
    ) {
        // SAFETY: by the caller; the tile registers belong to nobody else.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{a} + {row}*1]",
                "tileloadd tmm6, [{b} + {line}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {line}*1 + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{low} + {row}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 64",
                "add {low}, 64",
                "add {b}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{c} + {wide}*1], tmm0",
                "tilestored [{c} + {wide}*1 + 64], tmm1",
                "tilestored [{c} + {wide}*1 + 2048], tmm2",
                "tilestored [{c} + {wide}*1 + 2112], tmm3",
                a = inout(reg) a => _,
                low = inout(reg) a.add(16 * depth) => _,
                b = inout(reg) b => _,
                steps = inout(reg) steps => _,
                row = in(reg) depth * 2,
                line = in(reg) 64usize,
                wide = in(reg) 128usize,
                c = in(reg) sums.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Bias, shortcut, activation, rounding.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn finish(
        job: &Job,
        sums: &[f32; BLOCK * BLOCK],
        first: usize,
        row: usize,
        count: usize,
        column: usize,
        out: &mut [u16],
    ) {
        let n = job.weights.outputs;
        // SAFETY: masks keep loads and stores inside the bias, the shortcut and the target.
        unsafe {
            let (low, high) = (_mm512_set1_ps(job.low), _mm512_set1_ps(job.high));
            for half in (0..BLOCK).step_by(16) {
                let at = column + half;
                if at >= n {
                    break;
                }
                let mask: u16 = if n - at >= 16 { 0xffff } else { (1 << (n - at)) - 1 };
                let bias = _mm512_maskz_loadu_ps(mask, job.weights.bias.as_ptr().add(at));
                for i in 0..count {
                    let mut x = _mm512_add_ps(_mm512_loadu_ps(sums.as_ptr().add(i * BLOCK + half)), bias);
                    if let Some(s) = job.shortcut {
                        let s = s.as_ptr().add((first + row + i) * n + at);
                        let s = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, s.cast()));
                        x = _mm512_add_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32::<16>(s)));
                    }
                    // Not a number stays so: the second operand is taken.
                    x = _mm512_min_ps(high, _mm512_max_ps(low, x));
                    let half: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(x));
                    let to = out.as_mut_ptr().add((row + i) * n + at);
                    _mm256_mask_storeu_epi16(to.cast(), mask, half);
                }
            }
        }
    }
}

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
}

//! The innermost loops, on tiles and on vectors.

use std::arch::asm;
use std::arch::x86_64::*;

use super::{BLOCK, DEPTH, LINES, Rows, Unit, WEIGHTS, Weights};

/// The best unit of the processor.
pub(super) fn found() -> Option<Unit> {
    let vectors = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq");
    vectors.then(|| if tiles() { Unit::Tiles } else { Unit::Vectors })
}

/// Whether the processor has tiles for bf16 and the system lets this process use their state.
fn tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    let edx = __cpuid_count(7, 0).edx;
    let has = edx & (1 << 22) != 0 && edx & (1 << 24) != 0;
    // SAFETY: asks for a permission; touches no memory.
    has && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0
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

/// Output rows from `first` on, as many as `out` has, on tiles.
///
/// # Safety
/// The machine has the instructions, `Convolution::run` has seen the bounds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn on_tiles(job: &Job, first: usize, out: &mut [u16], gathered: &mut [u16]) {
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
                let rows = (count - row).min(BLOCK);
                announce(job, first, row, rows, column, out);
                tile_product(a, depth, weights, steps, &mut sums.0);
                finish(job, &sums.0, first, row, rows, column, out);
            }
        }
        asm!("tilerelease", options(nostack, nomem));
    }
}

/// `sums = a b` for 32 rows of `a`, `depth` values apart, and 32 columns.
#[inline(always)]
unsafe fn tile_product(
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

/// Output rows from `first` on, as many as `out` has, on vectors. `wide` takes the gathered rows in f32,
/// `[rows / LINES][depth / 32][LINES][32]`: the processor's own product of bf16 takes longer than that of
/// the widened values.
///
/// # Safety
/// The machine has the instructions, `Convolution::run` has seen the bounds.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn on_vectors(job: &Job, first: usize, out: &mut [u16], wide: &mut [f32]) {
    let (w, r) = (job.weights, job.rows);
    let (depth, n) = (w.depth, w.outputs);
    let (count, steps) = (out.len() / n, depth / DEPTH);
    let (mut image, mut q) = (first / r.p, first % r.p);
    for row in 0..count {
        let to = &mut wide[row / LINES * LINES * depth..][..LINES * depth];
        let line = row % LINES;
        for (t, tap) in r.taps.iter().enumerate() {
            let from = usize::try_from(r.table[t * r.p + q]).ok();
            let from = from.map(|at| &job.source[image * job.source_len + at..][..r.kc]);
            let (mut d, mut done) = (tap * r.kc, 0);
            while done < r.kc {
                let n = (DEPTH - d % DEPTH).min(r.kc - done);
                let to = &mut to[(d / DEPTH * LINES + line) * DEPTH + d % DEPTH..][..n];
                match from {
                    Some(from) => to.iter_mut().zip(&from[done..]).for_each(|(t, x)| *t = super::widen(*x)),
                    None => to.fill(0.0),
                }
                (d, done) = (d + n, done + n);
            }
        }
        for d in r.taps.len() * r.kc..depth {
            to[(d / DEPTH * LINES + line) * DEPTH + d % DEPTH] = 0.0;
        }
        q += 1;
        if q == r.p {
            (image, q) = (image + 1, 0);
        }
    }
    let mut sums = Sums([0.0; BLOCK * BLOCK]);
    for column in (0..n).step_by(BLOCK) {
        for row in (0..count).step_by(LINES) {
            let rows = (count - row).min(LINES);
            // SAFETY: whole tiles of gathered rows, whole blocks of weights; the rest as above.
            unsafe {
                announce(job, first, row, rows, column, out);
                let weights = w.tiles.as_ptr().add(column / BLOCK * steps * WEIGHTS);
                line_product(wide.as_ptr().add(row * depth), weights, steps, &mut sums.0);
                finish(job, &sums.0, first, row, rows, column, out);
            }
        }
    }
}

/// `sums = a b` for [`LINES`] rows of `a` and 32 columns.
///
/// # Safety
/// The machine has the instructions; `a` has a tile, `b` whole blocks for `steps`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[allow(clippy::needless_range_loop)] // register tiles are indexed
unsafe fn line_product(mut a: *const f32, mut b: *const u16, steps: usize, sums: &mut [f32; BLOCK * BLOCK]) {
    // SAFETY: by the caller.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; LINES];
        for _ in 0..steps {
            for pair in 0..DEPTH / 2 {
                let b = b.add(pair * 32);
                let b = [_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(WEIGHTS / 2).cast())];
                // The earlier of a pair lies in the lower half.
                let early = b.map(|b| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(b)));
                for i in 0..LINES {
                    let x = _mm512_set1_ps(*a.add(i * DEPTH + 2 * pair));
                    for half in 0..2 {
                        acc[i][half] = _mm512_fmadd_ps(x, early[half], acc[i][half]);
                    }
                }
                let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                let late = b.map(|b| _mm512_castsi512_ps(_mm512_and_si512(b, high)));
                for i in 0..LINES {
                    let x = _mm512_set1_ps(*a.add(i * DEPTH + 2 * pair + 1));
                    for half in 0..2 {
                        acc[i][half] = _mm512_fmadd_ps(x, late[half], acc[i][half]);
                    }
                }
            }
            a = a.add(LINES * DEPTH);
            b = b.add(WEIGHTS);
        }
        for i in 0..LINES {
            for half in 0..2 {
                _mm512_storeu_ps(sums.as_mut_ptr().add(i * BLOCK + half * 16), acc[i][half]);
            }
        }
    }
}

/// Asks for what a block will touch at its end.
#[inline(always)]
unsafe fn announce(job: &Job, first: usize, row: usize, count: usize, column: usize, out: &mut [u16]) {
    let n = job.weights.outputs;
    for i in 0..count {
        let at = (row + i) * n + column;
        // SAFETY: hints, which need no valid address.
        unsafe {
            _mm_prefetch::<_MM_HINT_ET0>(out.as_ptr().wrapping_add(at).cast());
            if let Some(s) = job.shortcut {
                _mm_prefetch::<_MM_HINT_T0>(s.as_ptr().wrapping_add(first * n + at).cast());
            }
        }
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
                let half = narrow(x);
                let to = out.as_mut_ptr().add((row + i) * n + at);
                _mm256_mask_storeu_epi16(to.cast(), mask, half);
            }
        }
    }
}

/// [`super::narrow`] of sixteen values.
#[inline(always)]
unsafe fn narrow(x: __m512) -> __m256i {
    // SAFETY: the caller has the instructions.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let none = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let kept = _mm512_mask_or_epi32(up, none, bits, _mm512_set1_epi32(0x40_0000));
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept))
    }
}

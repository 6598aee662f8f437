//! Inverse DCT of a block in libjpeg's integer arithmetic (`jidctint`: Loeffler, Ligtenberg and
//! Moschytz, ICASSP 1989, with 13 fractional bits), for identical pixels.

use std::num::Wrapping;

/// Eight columns of a row. Sums wrap for the oversized coefficients of corrupt files,
/// whose samples differ from those of libjpeg-turbo, which computes with 16 bits.
type Row = [Wrapping<i32>; 8];

/// One pass over the columns; rows from `N` on are zero, `SHIFT` fractional bits are rounded off.
#[inline(always)]
fn columns<const N: usize, const SHIFT: usize>(rows: &[Row; 8]) -> [Row; 8] {
    let w = Wrapping::<i32>;
    let mut out = [[w(0); 8]; 8];
    for lane in 0..8 {
        let at = |row: usize| if row < N { rows[row][lane] } else { w(0) };
        let (z2, z3) = (at(2), at(6));
        let z1 = (z2 + z3) * w(4433);
        let (t2, t3) = (z1 - z3 * w(15137), z1 + z2 * w(6270));
        let (t0, t1) = ((at(0) + at(4)) << 13, (at(0) - at(4)) << 13);
        let even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3];

        let (t0, t1, t2, t3) = (at(7), at(5), at(3), at(1));
        let z5 = (t0 + t2 + t1 + t3) * w(9633);
        let (z1, z2) = ((t0 + t3) * w(-7373), (t1 + t2) * w(-20995));
        let (z3, z4) = ((t0 + t2) * w(-16069) + z5, (t1 + t3) * w(-3196) + z5);
        let odd = [
            t3 * w(12299) + z1 + z4,
            t2 * w(25172) + z2 + z3,
            t1 * w(16819) + z2 + z4,
            t0 * w(2446) + z1 + z3,
        ];
        let half = w(1 << (SHIFT - 1));
        for i in 0..4 {
            out[i][lane] = (even[i] + odd[i] + half) >> SHIFT;
            out[7 - i][lane] = (even[i] - odd[i] + half) >> SHIFT;
        }
    }
    out
}

#[inline(always)]
fn transposed<T: Copy + Default>(rows: &[[T; 8]; 8]) -> [[T; 8]; 8] {
    let mut out = [[T::default(); 8]; 8];
    for (i, row) in rows.iter().enumerate() {
        for (j, &value) in row.iter().enumerate() {
            out[j][i] = value;
        }
    }
    out
}

/// Converts a value centered at 0 to a sample.
#[inline(always)]
fn level(value: i32) -> u8 {
    value.saturating_add(128).clamp(0, 255) as u8
}

#[inline(always)]
fn passes<const N: usize>(block: &[i16; 64]) -> [[u8; 8]; 8] {
    let mut rows = [[Wrapping(0); 8]; 8];
    for (row, values) in rows.iter_mut().zip(block.as_chunks::<8>().0).take(N) {
        for (value, &coefficient) in row.iter_mut().zip(values) {
            value.0 = i32::from(coefficient);
        }
    }
    let rows = transposed(&columns::<N, 11>(&rows));
    let rows = columns::<N, 18>(&rows);
    let mut samples = [[0; 8]; 8];
    for (to, from) in samples.as_flattened_mut().iter_mut().zip(rows.as_flattened()) {
        *to = level(from.0);
    }
    transposed(&samples)
}

/// Transforms a block whose coefficients after `last`, in zigzag order, are zero.
#[inline(always)]
pub(crate) fn samples(block: &[i16; 64], last: usize) -> [[u8; 8]; 8] {
    match last {
        0 => [[level((i32::from(block[0]) + 4) >> 3); 8]; 8],
        // The first ten are in the first four rows and columns.
        1..10 => passes::<4>(block),
        _ => passes::<8>(block),
    }
}

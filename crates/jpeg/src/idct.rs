//! Inverse DCT of a block in libjpeg's integer arithmetic (`jidctint`: Loeffler, Ligtenberg and
//! Moschytz, ICASSP 1989, with 13 fractional bits), for identical pixels. Values of 16 bits wrap and
//! saturate as in libjpeg-turbo's vector code, which only matters for corrupt files.

use std::num::Wrapping;

/// Eight columns of a row.
type Row = [i16; 8];

/// One pass over the columns; rows from `N` on are zero, `SHIFT` fractional bits are rounded off.
#[inline(always)]
fn columns<const N: usize, const SHIFT: usize>(rows: &[Row; 8]) -> [Row; 8] {
    let w = Wrapping::<i32>;
    let mut out = [[0; 8]; 8];
    for lane in 0..8 {
        let at = |row: usize| if row < N { rows[row][lane] } else { 0 };
        let wide = |row: usize| w(i32::from(at(row)));
        let sum = |a: usize, b: usize| w(i32::from(at(a).wrapping_add(at(b))));
        let difference = |a: usize, b: usize| w(i32::from(at(a).wrapping_sub(at(b))));

        let (z2, z3) = (wide(2), wide(6));
        let z1 = (z2 + z3) * w(4433);
        let (t2, t3) = (z1 - z3 * w(15137), z1 + z2 * w(6270));
        let (t0, t1) = (sum(0, 4) << 13, difference(0, 4) << 13);
        let even = [t0 + t3, t1 + t2, t1 - t2, t0 - t3];

        let (t0, t1, t2, t3) = (wide(7), wide(5), wide(3), wide(1));
        let (z3, z4) = (sum(7, 3), sum(5, 1));
        let z5 = (z3 + z4) * w(9633);
        let (z1, z2) = ((t0 + t3) * w(-7373), (t1 + t2) * w(-20995));
        let (z3, z4) = (z3 * w(-16069) + z5, z4 * w(-3196) + z5);
        let odd = [
            t3 * w(12299) + z1 + z4,
            t2 * w(25172) + z2 + z3,
            t1 * w(16819) + z2 + z4,
            t0 * w(2446) + z1 + z3,
        ];
        let round = |value: Wrapping<i32>| {
            ((value + w(1 << (SHIFT - 1))) >> SHIFT).0.clamp(i16::MIN.into(), i16::MAX.into()) as i16
        };
        for i in 0..4 {
            out[i][lane] = round(even[i] + odd[i]);
            out[7 - i][lane] = round(even[i] - odd[i]);
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
fn level(value: i16) -> u8 {
    value.saturating_add(128).clamp(0, 255) as u8
}

#[inline(always)]
fn passes<const N: usize>(block: &[i16; 64]) -> [[u8; 8]; 8] {
    let mut rows = [[0; 8]; 8];
    for (row, values) in rows.iter_mut().zip(block.as_chunks::<8>().0).take(N) {
        *row = *values;
    }
    // Without rounding and saturation where columns are constant, as in libjpeg-turbo.
    let is_constant = rows[1..N].as_flattened().iter().fold(0, |all, value| all | value) == 0;
    let rows = if is_constant { [rows[0].map(|value| value << 2); 8] } else { columns::<N, 11>(&rows) };
    let rows = transposed(&rows);
    let rows = columns::<N, 18>(&rows);
    let mut samples = [[0; 8]; 8];
    for (to, &from) in samples.as_flattened_mut().iter_mut().zip(rows.as_flattened()) {
        *to = level(from);
    }
    transposed(&samples)
}

/// Transforms a block whose coefficients after `last`, in zigzag order, are zero.
#[inline(always)]
pub(crate) fn samples(block: &[i16; 64], last: usize) -> [[u8; 8]; 8] {
    match last {
        0 => [[level(((i32::from(block[0] << 2) + 16) >> 5) as i16); 8]; 8],
        // The first ten are in the first four rows and columns.
        1..10 => passes::<4>(block),
        _ => passes::<8>(block),
    }
}

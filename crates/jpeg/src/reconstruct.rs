//! Samples of progressive images. Where scans are missing, libjpeg estimates the coefficients of a
//! block from its neighbors (similar to ITU T.81, annex K.8), so that a preview has no block edges.

use crate::frame::{Component, Frame};
use crate::huffman::{Steps, ZIGZAG, zigzag};
use crate::idct;
use crate::plane::Plane;
use crate::progressive::{Coefficients, Precision};

/// Weights of the constant coefficients of 5x5 blocks around a block.
type Kernel = [[i64; 5]; 5];

const fn transposed(kernel: Kernel) -> Kernel {
    let mut out = [[0; 5]; 5];
    let mut i = 0;
    while i < 25 {
        out[i / 5][i % 5] = kernel[i % 5][i / 5];
        i += 1;
    }
    out
}

/// Estimates of coefficients 1 to 5 (in file order) where some coefficients are known.
const SHARP: [Kernel; 5] = {
    let horizontal = [[0; 5], [0; 5], [-7, 50, 0, -50, 7], [0; 5], [0; 5]];
    let twice = [[0; 5], [0; 5], [-1, 13, -24, 13, -1], [0; 5], [0; 5]];
    let diagonal = [[0, -1, 0, 1, 0], [-1, 10, 0, -10, 1], [0; 5], [1, -10, 0, 10, -1], [0, 1, 0, -1, 0]];
    [horizontal, transposed(horizontal), transposed(twice), diagonal, twice]
};

/// Estimates of coefficients 0 to 9 where only the constant ones are known.
const SMOOTH: [Kernel; 10] = {
    let constant = [
        [-2, -6, -8, -6, -2],
        [-6, 6, 42, 6, -6],
        [-8, 42, 152, 42, -8],
        [-6, 6, 42, 6, -6],
        [-2, -6, -8, -6, -2],
    ];
    let horizontal =
        [[-1, -1, 0, 1, 1], [-3, 13, 0, -13, 3], [-3, 38, 0, -38, 3], [-3, 13, 0, -13, 3], [-1, -1, 0, 1, 1]];
    let twice = [[0; 5], [0, 2, -5, 2, 0], [1, 7, -14, 7, 1], [0, 2, -5, 2, 0], [0; 5]];
    let diagonal = [[-1, 0, 0, 0, 1], [0, 9, 0, -9, 0], [0; 5], [0, -9, 0, 9, 0], [1, 0, 0, 0, -1]];
    let thrice = [[0; 5], [0, 1, 0, -1, 0], [0, 2, 0, -2, 0], [0, 1, 0, -1, 0], [0; 5]];
    let mixed = [[0; 5], [0, 1, -3, 1, 0], [0; 5], [0, -1, 3, -1, 0], [0; 5]];
    [
        constant,
        horizontal,
        transposed(horizontal),
        transposed(twice),
        diagonal,
        twice,
        thrice,
        mixed,
        transposed(mixed),
        transposed(thrice),
    ]
};

/// Whether estimates help: all constant coefficients are known and others are not.
pub(crate) fn is_incomplete(frame: &Frame, precision: &[Precision]) -> bool {
    let usable = frame.components.iter().zip(precision).all(|(component, precision)| {
        let steps = component.steps.as_ref().is_some_and(|steps| steps[..10].iter().all(|&s| s != 0));
        steps && precision.now[0] >= 0
    });
    usable && precision.iter().any(|p| p.now[1..10].iter().any(|&bits| bits != 0))
}

/// Computes the samples of a component.
#[inline(always)]
pub(crate) fn plane(frame: &Frame, component: &Component, coefficients: &Coefficients) -> Plane {
    let mut plane = Plane::new(frame, component);
    let Some(steps) = &component.steps else { return plane };
    let steps = row_major(steps);
    for y in 0..component.rows {
        for x in 0..component.columns {
            set_block(&mut plane, (x, y), &coefficients.blocks[y * coefficients.stride + x], &steps);
        }
    }
    plane
}

/// Computes the samples of a component with estimated coefficients. From row `known` of interleaved
/// units on, the component's latest scan has no data.
pub(crate) fn smooth_plane(
    frame: &Frame,
    component: &Component,
    coefficients: &Coefficients,
    precision: &Precision,
    known: usize,
) -> Plane {
    let mut plane = Plane::new(frame, component);
    let Some(steps) = &component.steps else { return plane };
    let row_major = row_major(steps);
    for unit in 0..frame.rows {
        let is_last = unit + 1 == frame.rows;
        let rows = if is_last { component.rows - unit * component.down } else { component.down };
        let unknown: &[i8; 10] =
            if unit >= known { &precision.before } else { precision.now.first_chunk().unwrap_or(&[0; 10]) };
        for row in 0..rows {
            let y = unit * component.down + row;
            // libjpeg's count, which is off in the last unit if that has fewer rows.
            let (number, count) = (unit * rows + row, rows * frame.rows);
            let above = [usize::from(number > 0) + usize::from(number > 1), usize::from(number > 0)];
            let below = [
                usize::from(number + 1 < count),
                usize::from(number + 1 < count) + usize::from(number + 2 < count),
            ];
            let lines = [y - above[0], y - above[1], y, y + below[0], y + below[1]]
                .map(|y| &coefficients.blocks[y * coefficients.stride..][..component.columns]);
            for x in 0..component.columns {
                let mut block = lines[2][x];
                estimate(
                    &mut block,
                    |i, j| {
                        let x = (x + j).saturating_sub(2).min(component.columns - 1);
                        i64::from(lines[i][x][0])
                    },
                    unknown,
                    steps,
                );
                set_block(&mut plane, (x, y), &block, &row_major);
            }
        }
    }
    plane
}

/// Estimates the coefficients of a block that are zero and not known to be zero. `constant` returns the
/// constant coefficients of 5x5 blocks around it.
fn estimate(
    block: &mut [i16; 64],
    constant: impl Fn(usize, usize) -> i64,
    unknown: &[i8; 10],
    steps: &Steps,
) {
    let smooth = unknown[1..].iter().all(|&bits| bits == -1);
    let (first, kernels) = if smooth { (0, &SMOOTH[..]) } else { (1, &SHARP[..]) };
    for (k, kernel) in (first..).zip(kernels) {
        let bits = unknown[k];
        if k > 0 && (bits == 0 || block[zigzag(k)] != 0) {
            continue;
        }
        let mut sum = 0;
        for (i, weights) in kernel.iter().enumerate() {
            for (j, &weight) in weights.iter().enumerate() {
                sum += weight * constant(i, j);
            }
        }
        sum *= unsigned(steps[0]);
        let step = unsigned(steps[k]);
        let mut size = ((step << 7) + sum.abs()) / (step << 8);
        if k > 0 && bits > 0 {
            size = size.min((1 << bits) - 1);
        }
        block[zigzag(k)] = (size * sum.signum()) as i16;
    }
}

fn unsigned(step: i16) -> i64 {
    i64::from(step as u16)
}

fn row_major(steps: &Steps) -> [i16; 64] {
    let mut out = [0; 64];
    for (&at, &step) in ZIGZAG.iter().zip(&steps[..64]) {
        out[usize::from(at)] = step;
    }
    out
}

#[inline(always)]
fn set_block(plane: &mut Plane, (x, y): (usize, usize), block: &[i16; 64], steps: &[i16; 64]) {
    let mut values = [0; 64];
    for ((value, &coefficient), &step) in values.iter_mut().zip(block).zip(steps) {
        *value = coefficient.wrapping_mul(step);
    }
    let is_flat = block[1..].iter().fold(0, |all, &c| all | c) == 0;
    plane.set_block(x, y, &idct::samples(&values, if is_flat { 0 } else { 63 }));
}

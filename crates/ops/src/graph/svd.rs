//! Singular values and right singular vectors of batches of small matrices.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Shape, Tensor};
use rayon::prelude::*;

use crate::element::Float;
use crate::graph::{from_slice, made_of};
use crate::{Error, Result};

/// Squared singular values up to this share of the largest count as zero: they are computed from the Gram
/// matrix, so half of the digits of small ones are rounding errors.
const RANK: f64 = 1e-14;

/// Singular values up to this count as zero: the gradient of a vector grows as the inverse of its value.
const EPS: f64 = 1e-12;

/// Squared singular values closer than this share of the largest count as equal.
const GAP: f64 = 1e-10;

/// Computes the largest `n` singular values, in descending order, and their right singular vectors (rows)
/// for each matrix of a batch: `[B, R, C] -> ([B, n], [B, n, C])`. `n` is clamped to `min(R, C)`. f32 and
/// f64, computed in f64; results do not depend on the number of threads. Signs of vectors are arbitrary.
///
/// The gradient of the vector of value `s_j` contains `1 / (s_j^2 - s_i^2)`. For equal values the vectors
/// are not determined, and that term is dropped. A vector whose value is zero (up to 1e-12, or to
/// rounding relative to the largest) is zero with zero gradient. So the gradient is finite everywhere,
/// and correct wherever it exists.
///
/// Intended for matrices with one small side: Jacobi rotations of `min(R, C)` rows.
///
/// # Errors
/// If `x` is not a batch of matrices, or one of its sizes is 0.
pub fn svd(x: &Tensor, n: usize) -> Result<(Tensor, Tensor)> {
    let [_, r, c] = *x.dims() else {
        return Err(Error::shape("svd", "matrices [B, R, C]", x.dims()));
    };
    if x.elem_count() == 0 || n == 0 {
        return Err(Error::shape("svd", "one or more values, of one or more matrices", (x.dims(), n)));
    }
    let here = x.to_device(&Device::Cpu)?.contiguous()?;
    let packed = here.apply_op1(Svd { n: n.min(r).min(c), parts: OnceLock::new() })?; // [B, n, C + 1]
    let packed = packed.to_device(x.device())?;
    Ok((packed.narrow(2, c, 1)?.squeeze(2)?, packed.narrow(2, 0, c)?))
}

/// Row j of a result is the j-th vector, followed by its value.
struct Svd {
    n: usize,
    /// Saved per matrix for the backward pass.
    parts: OnceLock<Vec<Part>>,
}

/// Nonzero singular vectors of one matrix with their squared values.
struct Part {
    values: Vec<f64>,
    /// One row of length C per value.
    vectors: Vec<f64>,
}

impl Svd {
    fn forward<T: Float>(&self, x: &[T], r: usize, c: usize) -> Vec<T> {
        let parts: Vec<Part> = x.par_chunks(r * c).map(|x| Part::of(&wide(x), r, c)).collect();
        let mut out = vec![T::ZERO; parts.len() * self.n * (c + 1)];
        for ((x, part), out) in x.chunks(r * c).zip(&parts).zip(out.chunks_mut(self.n * (c + 1))) {
            if x.iter().any(|v| !v.widen().is_finite()) {
                out.fill(T::narrow(f64::NAN)); // NaN must not pass for a zero matrix
            }
            for (j, row) in out.chunks_mut(c + 1).enumerate().take(part.values.len()) {
                row.iter_mut().zip(part.vector(j, c)).for_each(|(o, v)| *o = T::narrow(*v));
                row[c] = T::narrow(part.values[j].sqrt());
            }
        }
        let _ = self.parts.set(parts); // a second forward pass of the same op: the same values
        out
    }

    fn backward<T: Float>(&self, x: &[T], dy: &[T], r: usize, c: usize) -> Vec<T> {
        let parts = self.parts.get().map_or(&[][..], Vec::as_slice);
        let rows = x.par_chunks(r * c).zip(dy.par_chunks(self.n * (c + 1))).zip(parts);
        let each = rows.map(|((x, dy), part)| {
            let dx = part.backward(&wide(x), &wide(dy), r, c);
            dx.into_iter().map(T::narrow).collect::<Vec<T>>()
        });
        each.collect::<Vec<_>>().concat()
    }
}

fn wide<T: Float>(values: &[T]) -> Vec<f64> {
    values.iter().map(|v| v.widen()).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Eight independent sums, for vectorization.
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0; 8];
    for (a, b) in a8.zip(b8) {
        for (s, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *s += a * b;
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `to += factor * from`
fn add(to: &mut [f64], factor: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += factor * f);
}

impl Part {
    /// `x [r, c]`
    fn of(x: &[f64], r: usize, c: usize) -> Self {
        let tall = c <= r;
        let side = r.min(c);
        let gram = if tall { columns(x, c) } else { rows(x, c) };
        let (squares, found) = eigen(gram, side);
        let least = (RANK * squares[0]).max(EPS * EPS);
        let live = squares.iter().take_while(|s| **s > least).count();
        let vectors = if tall {
            found[..live * side].to_vec()
        } else {
            // From left to right singular vectors: v = x^T u / s.
            let mut vectors = vec![0.0; live * c];
            for (j, v) in vectors.chunks_mut(c).enumerate() {
                for (i, row) in x.chunks(c).enumerate() {
                    add(v, found[j * side + i] / squares[j].sqrt(), row);
                }
            }
            vectors
        };
        Self { values: squares[..live].to_vec(), vectors }
    }

    fn vector(&self, j: usize, c: usize) -> &[f64] {
        &self.vectors[j * c..(j + 1) * c]
    }

    /// With `A = V^T dV`, `K_ij = A_ij / (s_j^2 - s_i^2)` and the part of dV outside the span of V, `W =
    /// dV - V A`, the gradient is `X V Z^T` with `Z = V (K + K^T) + W / s^2 + V ds / s`.
    fn backward(&self, x: &[f64], dy: &[f64], r: usize, c: usize) -> Vec<f64> {
        let mut dx = vec![0.0; r * c];
        let rank = self.values.len();
        let Some(largest) = self.values.first() else { return dx };
        let mut z = vec![0.0; rank * c]; // rows
        for (j, dy) in dy.chunks(c + 1).enumerate().take(rank) {
            let (dv, ds) = (&dy[..c], dy[c]);
            let value = self.values[j];
            let mut outside = dv.to_vec();
            for i in 0..rank {
                let vector = self.vector(i, c);
                let along = dot(vector, dv);
                add(&mut outside, -along, vector);
                let gap = value - self.values[i];
                if i != j && gap.abs() > GAP * largest {
                    add(&mut z[j * c..(j + 1) * c], along / gap, vector);
                    add(&mut z[i * c..(i + 1) * c], along / gap, self.vector(j, c));
                }
            }
            add(&mut z[j * c..(j + 1) * c], value.recip(), &outside);
            add(&mut z[j * c..(j + 1) * c], ds / value.sqrt(), self.vector(j, c));
        }
        for (x, dx) in x.chunks(c).zip(dx.chunks_mut(c)) {
            for i in 0..rank {
                add(dx, dot(x, self.vector(i, c)), &z[i * c..(i + 1) * c]);
            }
        }
        dx
    }
}

/// Gram matrix of the columns of a matrix with `c` columns.
fn columns(x: &[f64], c: usize) -> Vec<f64> {
    // Blocks of transposed rows: long contiguous dot products are much faster than short rows.
    const ROWS: usize = 128;
    let (mut gram, mut transposed) = (vec![0.0; c * c], vec![0.0; c * ROWS]);
    for block in x.chunks(c * ROWS) {
        if block.len() < transposed.len() {
            transposed.fill(0.0);
        }
        for (r, row) in block.chunks(c).enumerate() {
            row.iter().enumerate().for_each(|(i, v)| transposed[i * ROWS + r] = *v);
        }
        for (i, a) in transposed.chunks(ROWS).enumerate() {
            for (j, b) in transposed.chunks(ROWS).enumerate().take(i + 1) {
                gram[i * c + j] += dot(a, b);
            }
        }
    }
    mirrored(gram, c)
}

/// Gram matrix of the rows of a matrix with `c` columns.
fn rows(x: &[f64], c: usize) -> Vec<f64> {
    let side = x.len() / c;
    let mut gram = vec![0.0; side * side];
    for (i, a) in x.chunks(c).enumerate() {
        for (j, b) in x.chunks(c).enumerate().take(i + 1) {
            gram[i * side + j] = dot(a, b);
        }
    }
    mirrored(gram, side)
}

/// Copies the lower triangle to the upper one.
fn mirrored(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    for i in 0..n {
        for j in 0..i {
            a[j * n + i] = a[i * n + j];
        }
    }
    a
}

/// Eigenvalues, in descending order, and eigenvectors (rows) of a symmetric matrix, by cyclic Jacobi
/// rotations.
fn eigen(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut v = vec![0.0; n * n];
    (0..n).for_each(|i| v[i * n + i] = 1.0);
    let total: f64 = a.iter().map(|x| x * x).sum();
    for _ in 0..60 {
        let off: f64 =
            (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i * n + j].powi(2)).sum();
        if off <= f64::EPSILON * f64::EPSILON * 1e-4 * total {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, &mut v, n, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| a[j * n + j].total_cmp(&a[i * n + i])); // stable
    let values = order.iter().map(|i| a[i * n + i].max(0.0)).collect();
    let vectors = order.iter().flat_map(|i| v[i * n..(i + 1) * n].iter().copied()).collect();
    (values, vectors)
}

/// Applies the rotation that zeroes `a[p][q]`.
fn rotate(a: &mut [f64], v: &mut [f64], n: usize, p: usize, q: usize) {
    let off = a[p * n + q];
    if off == 0.0 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * off);
    let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let c = t.hypot(1.0).recip();
    let s = t * c;
    for k in 0..n {
        let (x, y) = (a[k * n + p], a[k * n + q]);
        (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
    }
    for rows in [a, v] {
        let (front, back) = rows.split_at_mut(q * n);
        for (x, y) in front[p * n..(p + 1) * n].iter_mut().zip(&mut back[..n]) {
            (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
        }
    }
}

impl CustomOp1 for Svd {
    fn name(&self) -> &'static str {
        "svd"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (b, r, c) = layout.shape().dims3()?;
        let shape = Shape::from((b, self.n, c + 1));
        Ok(match x.dtype() {
            DType::F64 => (CpuStorage::F64(self.forward(from_slice::<f64>(x, layout)?, r, c)), shape),
            _ => (CpuStorage::F32(self.forward(from_slice::<f32>(x, layout)?, r, c)), shape),
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (_, r, c) = x.dims3()?;
        Ok(Some(match x.dtype() {
            DType::F64 => made_of::<f64>([x, dy], x, |x, dy| self.backward(x, dy, r, c))?,
            _ => made_of::<f32>([x, dy], x, |x, dy| self.backward(x, dy, r, c))?,
        }))
    }
}

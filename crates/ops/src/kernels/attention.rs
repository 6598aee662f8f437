//! Multi-head attention inside the windows of NHWC maps (Swin).
//!
//! Windows are not copied out: a table maps each token of a window to a pixel. Tokens beyond the edge of
//! the map have no pixel; they hold the projection of a zero pixel, that is the bias of queries, keys and
//! values.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::small_gemm::{Left, multiply};
use super::{SharedSlice, parallel};
use crate::buffers::Pool;
use crate::element::Float;
use crate::simd::{Kernel, Simd};
use crate::weight_packing::LANES;

/// Added to the scores of masked tokens, as in the authors' code.
const MASKED: f64 = -100.0;
/// Attention weights below this share of the largest are flushed to zero. Those of masked tokens would be
/// subnormal, which makes each product a hundred times slower.
const NEGLIGIBLE: f64 = 1e-20;
/// Number of chunks of a batch's windows, independent of the number of threads.
const PARTS: usize = 16;

/// Windows of one map size.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Windows {
    /// Rows and columns of a window.
    pub(crate) size: [usize; 2],
    /// Windows per image.
    pub(crate) count: usize,
    /// Pixels per image.
    pixels: usize,
    /// Pixel of token `t` of window `w` at `w * tokens + t`, or -1.
    table: Vec<i32>,
    /// Region of each token; tokens attend within their region only.
    regions: Vec<u8>,
    /// Whether a window has more than one region.
    mixed: Vec<bool>,
}

impl Windows {
    /// Partitions a map that is cyclically shifted by `shift` towards the origin and zero-padded to whole
    /// windows.
    pub(crate) fn new(map: [usize; 2], size: [usize; 2], shift: [usize; 2]) -> Self {
        let across = [map[0].div_ceil(size[0]), map[1].div_ceil(size[1])];
        let padded = [across[0] * size[0], across[1] * size[1]];
        // The last window holds what the shift wrapped around: a separate region.
        let region = |i: usize, d: usize| match () {
            () if shift[d] == 0 || i < padded[d] - size[d] => 0,
            () if i < padded[d] - shift[d] => 1,
            () => 2,
        };
        let count = across[0] * across[1];
        let (mut table, mut regions, mut mixed) = (Vec::new(), Vec::new(), Vec::new());
        for w in 0..count {
            let first = regions.len();
            for t in 0..size[0] * size[1] {
                let y = w / across[1] * size[0] + t / size[1];
                let x = w % across[1] * size[1] + t % size[1];
                let pixel = (y < map[0] && x < map[1])
                    .then(|| (y + shift[0]) % map[0] * map[1] + (x + shift[1]) % map[1]);
                table.push(pixel.map_or(-1, |p| p as i32));
                regions.push(3 * region(y, 0) + region(x, 1));
            }
            mixed.push(regions[first..].iter().any(|r| *r != regions[first]));
        }
        Self { size, count, pixels: map[0] * map[1], table, regions, mixed }
    }

    /// Returns the pixels per image.
    pub(crate) fn pixels(&self) -> usize {
        self.pixels
    }

    /// Returns the pixel of every token, or -1.
    pub(crate) fn table(&self) -> &[i32] {
        &self.table
    }

    /// Returns the additive mask `[count, tokens, tokens]`, or `None` if every window has one region.
    pub(crate) fn mask(&self) -> Option<Vec<f64>> {
        let one = self.mixed.iter().all(|m| !m);
        let of_window = |regions: &[u8]| -> Vec<f64> {
            let pairs = regions.iter().flat_map(|q| regions.iter().map(move |k| q == k));
            pairs.map(|same| if same { 0.0 } else { MASKED }).collect()
        };
        (!one).then(|| self.regions.chunks_exact(self.tokens()).flat_map(of_window).collect())
    }

    /// Returns the tokens per window.
    pub(crate) fn tokens(&self) -> usize {
        self.size[0] * self.size[1]
    }

    /// Iterates over the row of the relative position table for every pair (query, key), by row
    /// difference, then by column difference.
    pub(crate) fn pairs(&self) -> impl Iterator<Item = usize> + '_ {
        let [h, w] = self.size;
        (0..self.tokens() * self.tokens()).map(move |i| {
            let (q, k) = (i / (h * w), i % (h * w));
            let dy = q / w + h - 1 - k / w;
            let dx = q % w + w - 1 - k % w;
            dy * (2 * w - 1) + dx
        })
    }
}

/// One attention layer on a batch.
pub(crate) struct Attention<'a, T> {
    pub(crate) windows: &'a Windows,
    pub(crate) images: usize,
    pub(crate) heads: usize,
    /// Channels per head.
    pub(crate) width: usize,
    /// Queries, keys, values: `[images, pixels, 3, heads, width]`.
    pub(crate) qkv: &'a [T],
    /// Projection of a zero pixel, for tokens beyond the edge.
    pub(crate) outside: &'a [T],
    /// Relative position bias, `[heads, tokens, padded tokens]`.
    pub(crate) bias: &'a [T],
    pub(crate) scratch: &'a Arc<Pool<T>>,
}

fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES)
}

/// Returns the length of the expanded bias.
pub(crate) fn bias_len(heads: usize, tokens: usize) -> usize {
    heads * tokens * padded(tokens)
}

/// Expands the table `[positions, heads]` to `[heads, tokens, padded tokens]`.
pub(crate) fn spread_bias<T: Float>(windows: &Windows, table: &[T], heads: usize, out: &mut [T]) {
    let n = windows.tokens();
    out.fill(T::ZERO);
    for (i, pair) in windows.pairs().enumerate() {
        for head in 0..heads {
            out[(head * n + i / n) * padded(n) + i % n] = table[pair * heads + head];
        }
    }
}

impl<T: Float> Attention<'_, T> {
    /// Windows per task.
    fn part(&self) -> usize {
        (self.images * self.windows.count).div_ceil(PARTS).max(1)
    }

    fn parts(&self) -> usize {
        (self.images * self.windows.count).div_ceil(self.part())
    }

    /// Length of one partial sum: gradients of the bias and of `outside` for one head.
    fn sum_len(&self) -> usize {
        let n = self.windows.tokens();
        n * padded(n) + 3 * self.width
    }

    /// Returns the length of the partial sums of [`Attention::backward`].
    pub(crate) fn sums_len(&self) -> usize {
        self.parts() * self.heads * self.sum_len()
    }

    /// Writes `[images, pixels, heads, width]`.
    pub(crate) fn forward(&self, out: &mut [T]) {
        let out = SharedSlice::new(out);
        parallel(self.parts() * self.heads, |task| {
            T::run(Forward { layer: self, head: task % self.heads, part: task / self.heads, out });
        });
    }

    /// Writes the whole gradient of `qkv`, and partial sums for [`Attention::gather`].
    pub(crate) fn backward(&self, dy: &[T], d_qkv: &mut [T], sums: &mut [T]) {
        let (d_qkv, sums) = (SharedSlice::new(d_qkv), SharedSlice::new(sums));
        let len = self.sum_len();
        parallel(self.parts() * self.heads, |task| {
            // SAFETY: one partial sum per task.
            let sum = unsafe { sums.range(task * len, len) };
            sum.fill(T::ZERO);
            let (head, part) = (task % self.heads, task / self.heads);
            T::run(Backward { layer: self, head, part, dy, d_qkv, sum });
        });
    }

    /// Adds the partial sums to the gradients of the table `[positions, heads]` and of `outside`.
    pub(crate) fn gather(&self, sums: &[T], d_table: &mut [T], d_outside: &mut [T]) {
        let (n, len) = (self.windows.tokens(), self.sum_len());
        let pairs: Vec<usize> = self.windows.pairs().collect();
        for (task, sum) in sums.chunks_exact(len).enumerate() {
            let head = task % self.heads;
            let (bias, outside) = sum.split_at(n * padded(n));
            for (i, pair) in pairs.iter().enumerate() {
                d_table[pair * self.heads + head] += bias[i / n * padded(n) + i % n];
            }
            for (kind, part) in outside.chunks_exact(self.width).enumerate() {
                let at = (kind * self.heads + head) * self.width;
                for (d, s) in d_outside[at..at + self.width].iter_mut().zip(part) {
                    *d += *s;
                }
            }
        }
    }

    /// Iterates over the windows of a chunk as (image, window).
    fn of_part(&self, part: usize) -> impl Iterator<Item = (usize, usize)> {
        let (count, all) = (self.windows.count, self.images * self.windows.count);
        let (first, len) = (part * self.part(), self.part());
        (first..(first + len).min(all)).map(move |i| (i / count, i % count))
    }

    /// Returns the query (0), key (1) or value (2) of one token and head.
    #[inline(always)]
    fn token(&self, image: usize, window: usize, token: usize, kind: usize, head: usize) -> &[T] {
        let at = (kind * self.heads + head) * self.width;
        match self.windows.table[window * self.windows.tokens() + token] {
            -1 => &self.outside[at..at + self.width],
            pixel => {
                let row = (image * self.windows.pixels + pixel as usize) * 3 * self.heads * self.width;
                &self.qkv[row + at..row + at + self.width]
            }
        }
    }

    /// Copies tokens to rows of `padded(width)`.
    #[inline(always)]
    fn rows(&self, at: (usize, usize), kind: usize, head: usize, scale: T, to: &mut [T]) {
        for (t, to) in to.chunks_exact_mut(padded(self.width)).enumerate() {
            for (to, x) in to.iter_mut().zip(self.token(at.0, at.1, t, kind, head)) {
                *to = *x * scale;
            }
        }
    }

    /// Copies tokens to columns of `padded(tokens)` values.
    #[inline(always)]
    fn columns(&self, at: (usize, usize), kind: usize, head: usize, to: &mut [T]) {
        let n = padded(self.windows.tokens());
        for t in 0..self.windows.tokens() {
            for (i, x) in self.token(at.0, at.1, t, kind, head).iter().enumerate() {
                to[i * n + t] = *x;
            }
        }
    }

    /// Replaces `q k` by `softmax(q k + bias + mask)`; padding columns become zero.
    #[inline(always)]
    fn softmax(&self, window: usize, head: usize, scores: &mut [T]) {
        let n = self.windows.tokens();
        let wide = padded(n);
        let bias = &self.bias[head * n * wide..(head + 1) * n * wide];
        let regions = &self.windows.regions[window * n..(window + 1) * n];
        let mixed = self.windows.mixed[window];
        for (q, (row, bias)) in scores.chunks_exact_mut(wide).zip(bias.chunks_exact(wide)).enumerate() {
            for (s, b) in row.iter_mut().zip(bias) {
                *s += *b;
            }
            if mixed {
                for (s, r) in row.iter_mut().zip(regions) {
                    *s += if *r == regions[q] { T::ZERO } else { T::narrow(MASKED) };
                }
            }
            row[n..].fill(T::narrow(f64::NEG_INFINITY));
            let most = lanewise(row, T::narrow(f64::NEG_INFINITY), |a, b| if b > a { b } else { a });
            for s in row.iter_mut() {
                let weight = (*s - most).fast_exp();
                *s = if weight > T::narrow(NEGLIGIBLE) { weight } else { T::ZERO };
            }
            let scale = T::narrow(1.0) / lanewise(row, T::ZERO, |a, b| a + b);
            for s in row.iter_mut() {
                *s *= scale;
            }
        }
    }
}

/// Reduces a row of whole vectors lane by lane, then pairwise.
#[inline(always)]
fn lanewise<T: Float>(row: &[T], start: T, f: impl Fn(T, T) -> T + Copy) -> T {
    let mut lanes = [start; LANES];
    for x in row.chunks_exact(LANES) {
        for (l, x) in lanes.iter_mut().zip(x) {
            *l = f(*l, *x);
        }
    }
    halved(lanes, f)
}

/// Reduces the lanes pairwise.
#[inline(always)]
fn halved<T: Float>(mut lanes: [T; LANES], f: impl Fn(T, T) -> T) -> T {
    let mut n = LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            lanes[i] = f(lanes[i], lanes[i + n]);
        }
    }
    lanes[0]
}

/// Splits `len` values off a scratch buffer.
fn cut<'a, T>(rest: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (first, last) = std::mem::take(rest).split_at_mut(len);
    *rest = last;
    first
}

struct Forward<'a, 'b, T> {
    layer: &'a Attention<'b, T>,
    head: usize,
    part: usize,
    out: SharedSlice<T>,
}

impl<T: Float> Kernel<T> for Forward<'_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Simd<T = T>>(self) {
        let (a, head) = (self.layer, self.head);
        let (n, d) = (a.windows.tokens(), a.width);
        let (wide, deep) = (padded(n), padded(d));
        let mut scratch = a.scratch.take(3 * n * deep + d * wide + n * wide);
        scratch.fill(T::ZERO); // the padding is never written below
        let mut rest = &mut scratch[..];
        let (q, v, y) = (cut(&mut rest, n * deep), cut(&mut rest, n * deep), cut(&mut rest, n * deep));
        let (k, scores) = (cut(&mut rest, d * wide), rest);
        let scale = T::narrow((d as f64).powf(-0.5));
        for at in a.of_part(self.part) {
            a.rows(at, 0, head, scale, q);
            a.columns(at, 1, head, k);
            a.rows(at, 2, head, T::narrow(1.0), v);
            // SAFETY: inside a kernel; tasks own the pixels of their windows and the channels of their
            // head.
            unsafe {
                multiply::<L>(Left { values: q, row: deep, column: 1 }, k, scores, (n, d, wide));
                a.softmax(at.1, head, scores);
                multiply::<L>(Left { values: scores, row: wide, column: 1 }, v, y, (n, n, deep));
                for (t, y) in y.chunks_exact(deep).enumerate() {
                    if let Ok(pixel) = usize::try_from(a.windows.table[at.1 * n + t]) {
                        let row = (at.0 * a.windows.pixels + pixel) * a.heads + head;
                        self.out.range(row * d, d).copy_from_slice(&y[..d]);
                    }
                }
            }
        }
    }
}

struct Backward<'a, 'b, T> {
    layer: &'a Attention<'b, T>,
    head: usize,
    part: usize,
    dy: &'a [T],
    d_qkv: SharedSlice<T>,
    sum: &'a mut [T],
}

impl<T: Float> Kernel<T> for Backward<'_, '_, T> {
    type Out = ();
    #[inline(always)]
    fn run<L: Simd<T = T>>(self) {
        let (a, head) = (self.layer, self.head);
        let (n, d) = (a.windows.tokens(), a.width);
        let (wide, deep) = (padded(n), padded(d));
        let mut scratch = a.scratch.take(6 * n * deep + 2 * d * wide + 2 * n * wide);
        scratch.fill(T::ZERO); // the padding is never written below
        let mut rest = &mut scratch[..];
        let (q, k, dy) = (cut(&mut rest, n * deep), cut(&mut rest, n * deep), cut(&mut rest, n * deep));
        let (dq, dk, dv) = (cut(&mut rest, n * deep), cut(&mut rest, n * deep), cut(&mut rest, n * deep));
        let (k_columns, v_columns) = (cut(&mut rest, d * wide), cut(&mut rest, d * wide));
        let (weights, slopes) = (cut(&mut rest, n * wide), rest);
        let (d_bias, d_outside) = self.sum.split_at_mut(n * wide);
        let (scale, one) = (T::narrow((d as f64).powf(-0.5)), T::narrow(1.0));
        for at in a.of_part(self.part) {
            a.rows(at, 0, head, scale, q);
            a.rows(at, 1, head, one, k);
            a.columns(at, 1, head, k_columns);
            a.columns(at, 2, head, v_columns);
            for (t, dy) in dy.chunks_exact_mut(deep).enumerate() {
                match usize::try_from(a.windows.table[at.1 * n + t]) {
                    Ok(pixel) => {
                        let row = ((at.0 * a.windows.pixels + pixel) * a.heads + head) * d;
                        dy[..d].copy_from_slice(&self.dy[row..row + d]);
                    }
                    Err(_) => dy.fill(T::ZERO),
                }
            }
            // SAFETY: inside a kernel; tasks own the pixels of their windows and the channels of their
            // head.
            unsafe {
                multiply::<L>(Left { values: q, row: deep, column: 1 }, k_columns, weights, (n, d, wide));
                a.softmax(at.1, head, weights);
                multiply::<L>(Left { values: dy, row: deep, column: 1 }, v_columns, slopes, (n, d, wide));
                multiply::<L>(Left { values: weights, row: 1, column: wide }, dy, dv, (n, n, deep));
            }
            softmax_backward(weights, slopes, d_bias, wide);
            // SAFETY: as above.
            unsafe {
                multiply::<L>(Left { values: slopes, row: wide, column: 1 }, k, dq, (n, n, deep));
                multiply::<L>(Left { values: slopes, row: 1, column: wide }, q, dk, (n, n, deep));
            }
            for (kind, (from, scale)) in [(&*dq, scale), (&*dk, one), (&*dv, one)].into_iter().enumerate() {
                for (t, from) in from.chunks_exact(deep).enumerate() {
                    let (from, column) = (&from[..d], (kind * a.heads + head) * d);
                    match usize::try_from(a.windows.table[at.1 * n + t]) {
                        Ok(pixel) => {
                            let row = (at.0 * a.windows.pixels + pixel) * 3 * a.heads * d;
                            // SAFETY: as above.
                            let to = unsafe { self.d_qkv.range(row + column, d) };
                            to.iter_mut().zip(from).for_each(|(to, x)| *to = *x * scale);
                        }
                        Err(_) => {
                            let to = &mut d_outside[kind * d..(kind + 1) * d];
                            to.iter_mut().zip(from).for_each(|(to, x)| *to += *x * scale);
                        }
                    }
                }
            }
        }
    }
}

/// Turns gradients of the attention weights into gradients of the scores in place, and adds them to
/// `d_bias`.
#[inline(always)]
fn softmax_backward<T: Float>(weights: &[T], slopes: &mut [T], d_bias: &mut [T], wide: usize) {
    let rows =
        weights.chunks_exact(wide).zip(slopes.chunks_exact_mut(wide)).zip(d_bias.chunks_exact_mut(wide));
    for ((p, dp), d_bias) in rows {
        let mut lanes = [T::ZERO; LANES];
        for (p, dp) in p.chunks_exact(LANES).zip(dp.chunks_exact(LANES)) {
            for (l, (p, dp)) in lanes.iter_mut().zip(p.iter().zip(dp)) {
                *l += *p * *dp;
            }
        }
        let mean = halved(lanes, |a, b| a + b);
        for ((p, dp), b) in p.iter().zip(dp.iter_mut()).zip(d_bias) {
            *dp = *p * (*dp - mean);
            *b += *dp;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens of another region have exactly zero weight: their values change no bit.
    #[test]
    fn masked_tokens_have_zero_weight() {
        let windows = Windows::new([4, 4], [2, 2], [1, 1]);
        let (tokens, width) = (windows.tokens(), 16);
        let window = windows.mixed.iter().position(|mixed| *mixed).unwrap();
        let at = |token: usize| windows.table[window * tokens + token] as usize;
        let region = |token: usize| windows.regions[window * tokens + token];
        let mut qkv: Vec<f32> =
            (0..16 * 3 * width).map(|i| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0).collect();
        let (outside, bias) = (vec![0.0; 3 * width], vec![0.0; bias_len(1, tokens)]);
        let scratch = Arc::new(Pool::default());
        let run = |qkv: &[f32]| {
            let (windows, outside, bias, scratch) = (&windows, &outside[..], &bias[..], &scratch);
            let mut out = vec![0.0; 16 * width];
            Attention { windows, images: 1, heads: 1, width, qkv, outside, bias, scratch }.forward(&mut out);
            out[at(0) * width..][..width].to_vec()
        };
        let before = run(&qkv);
        for token in (1..tokens).filter(|t| region(*t) != region(0)) {
            let value = (at(token) * 3 + 2) * width;
            qkv[value..value + width].fill(1e38);
        }
        assert_eq!(before, run(&qkv));
        let value = (at(0) * 3 + 2) * width;
        qkv[value] += 1.0;
        assert_ne!(before, run(&qkv));
    }
}

//! Winograd's F(4x4, 3x3) (Lavin and Gray 2016): a 3x3 convolution of stride 1 as 36 matrix
//! products over tiles of 4x4 outputs, with a quarter of the multiplications.
//!
//! Weights become `U = G g G^T`, tiles of 6x6 inputs `V = B^T d B`, products `M = U V` per point
//! become outputs `A^T M A`. The same serves the data gradient, with turned weights; the weight
//! gradient is `G^T (sum over tiles of V (A dy A^T)) G`. Rounding errors are some five times those
//! of the direct sum.

mod convolution;
mod gradient;
mod transform;

pub(crate) use convolution::Convolution;
pub(crate) use gradient::WeightGradient;
pub(crate) use transform::transform_weight;

use std::sync::OnceLock;

use crate::kernels::geometry::ConvGeo;
use crate::weight_packing::LANES;

/// Tiles that pay, times this, are at least the channels in times out (measured).
const PER_WEIGHT: usize = 600;
/// Points of a transformed tile.
const POINTS: usize = 36;
/// Outputs of a tile in one direction.
const OUT: usize = 4;
/// Weights whose transform stays in the second-level cache: blocks of tiles go through all points.
/// Larger ones are read once per point for many tiles.
const SMALL: usize = 640 * 1024;
/// Transformed values in flight where the weights are large.
const IN_FLIGHT: usize = 4 * 1024 * 1024;
/// Weight gradients up to this size are summed in copies over chunks of tiles.
const SMALL_GRADIENT: usize = 160 * 1024;
const CHUNKS: usize = 8;

/// Whether the environment lets it serve: unless it says `STILLHOUSE_WINOGRAD=0`. Read once.
pub(crate) fn allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| std::env::var("STILLHOUSE_WINOGRAD").as_deref() != Ok("0"))
}

/// A 3x3 convolution of stride 1 on maps of one size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tiles {
    pub(crate) images: usize,
    /// Rows and columns of the source and of the target.
    pub(crate) source: [usize; 2],
    pub(crate) target: [usize; 2],
    /// Zero rows and columns before the source.
    pub(crate) before: [usize; 2],
    /// Channels of the source and of the target: multiples of [`LANES`].
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl Tiles {
    fn across(&self) -> [usize; 2] {
        self.target.map(|n| n.div_ceil(OUT))
    }

    fn count(&self) -> usize {
        self.images * self.across().iter().product::<usize>()
    }

    /// The tiles of a convolution's forward pass for so many images, if it is one that tiles serve and
    /// they pay with as many images as `nominal`.
    pub(crate) fn of(geo: &ConvGeo, images: usize, nominal: usize) -> Option<Self> {
        let spec = &geo.spec;
        let served = spec.kernel == 3 && spec.stride == 1 && spec.dilation == 1 && spec.groups == 1;
        if !served || geo.before != [1, 1] || geo.output != geo.input {
            return None;
        }
        let (size, before) = (geo.input, geo.before);
        let tiles =
            Self { images, source: size, target: size, before, inputs: spec.inputs, outputs: spec.outputs };
        tiles.pay(nominal).then_some(tiles)
    }

    /// The tiles of the data gradient.
    pub(crate) fn turned(self) -> Self {
        Self { inputs: self.outputs, outputs: self.inputs, ..self }
    }

    /// Whether tiles pay: enough of them for their weights, and not too much of them outside.
    fn pay(&self, nominal_images: usize) -> bool {
        let [th, tw] = self.across();
        let [h, w] = self.target;
        self.inputs.is_multiple_of(LANES)
            && self.outputs.is_multiple_of(LANES)
            && 10 * h * w > 6 * OUT * OUT * th * tw
            && nominal_images * th * tw * PER_WEIGHT >= self.inputs * self.outputs
    }

    /// Image, first row and first column of a tile in the target.
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let [th, tw] = self.across();
        (tile / (th * tw), tile / tw % th * OUT, tile % tw * OUT)
    }

    fn check<T>(&self, source: &[T], target_len: usize) {
        assert!(self.inputs.is_multiple_of(LANES) && self.outputs.is_multiple_of(LANES));
        assert!(source.len() >= self.images * self.source[0] * self.source[1] * self.inputs);
        assert!(target_len >= self.images * self.target[0] * self.target[1] * self.outputs);
    }

    /// Tiles that one task takes through all points.
    fn block(&self) -> usize {
        (320 * 1024 / (POINTS * (self.inputs + self.outputs))).clamp(8, 96)
    }

    /// Tasks that leave sums.
    pub(crate) fn sum_tasks(&self) -> usize {
        if self.weight_len() <= SMALL {
            self.count().div_ceil(self.block())
        } else {
            self.count().div_ceil(4)
        }
    }

    /// Tiles in flight where the weights are large.
    fn many(&self) -> usize {
        (IN_FLIGHT / (POINTS * (self.inputs + self.outputs))).clamp(8, self.count().max(8)) / 4 * 4
    }

    /// Values of a transformed weight.
    pub(crate) fn weight_len(&self) -> usize {
        POINTS * self.inputs * self.outputs
    }

    /// Values of scratch memory of a [`Convolution`].
    pub(crate) fn scratch_len(&self) -> usize {
        let per_tile = POINTS * (self.inputs + self.outputs);
        if self.weight_len() <= SMALL {
            rayon::current_num_threads() * self.block() * per_tile
        } else {
            self.many() * per_tile
        }
    }

    fn gradient_chunks(&self) -> usize {
        if self.weight_len() <= SMALL_GRADIENT { CHUNKS } else { 1 }
    }

    /// Values of scratch memory of a [`WeightGradient`].
    pub(crate) fn gradient_scratch_len(&self) -> usize {
        let per_tile = POINTS * (self.inputs + self.outputs);
        let chunks = self.gradient_chunks();
        let tiles = if chunks > 1 { rayon::current_num_threads() * self.block() } else { self.many() };
        chunks * self.weight_len() + tiles * per_tile
    }
}

/// Which part of per-thread scratch memory a task uses.
fn slot() -> usize {
    rayon::current_thread_index().unwrap_or(0)
}
#[cfg(test)]
mod tests {
    use super::super::Shared;
    use super::super::indirect_gemm::Epilogue;
    use super::*;
    use crate::element::Float;
    use crate::rng::Rng;
    use crate::weight_packing::Panels;

    fn random<T: Float>(stream: &str, len: usize) -> Vec<T> {
        let mut draw = Rng::new(5).stream(stream).at(0, 0);
        (0..len).map(|_| T::of(draw.normal())).collect()
    }

    /// Sums over all pairs of an output and a kernel element that meet inside the map.
    fn direct(t: Tiles, mut f: impl FnMut(usize, usize, usize)) {
        let ([h, w], [oh, ow]) = (t.source, t.target);
        for image in 0..t.images {
            for y in 0..oh {
                for x in 0..ow {
                    for tap in 0..9 {
                        let (sy, sx) = (y + tap / 3, x + tap % 3);
                        let (sy, sx) = (sy.wrapping_sub(t.before[0]), sx.wrapping_sub(t.before[1]));
                        if sy < h && sx < w {
                            f((image * oh + y) * ow + x, (image * h + sy) * w + sx, tap);
                        }
                    }
                }
            }
        }
    }

    /// Root mean square of the deviations over that of what is expected.
    fn deviation<T: Float>(got: &[T], want: &[f64]) -> f64 {
        let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len() as f64).sqrt();
        let off = got.iter().zip(want).map(|(g, w)| (g.wide() - w).powi(2)).sum::<f64>();
        (off / want.len() as f64).sqrt() / rms
    }

    fn compare<T: Float>(t: Tiles, tolerance: f64) {
        let (c, k) = (t.inputs, t.outputs);
        let panels = Panels::new(&[k, c, 3, 3], 1).unwrap();
        let (x, dy): (Vec<T>, Vec<T>) = (
            random("x", t.images * t.source[0] * t.source[1] * c),
            random("dy", t.images * t.target[0] * t.target[1] * k),
        );
        let plain: Vec<T> = random("w", 9 * c * k); // [k][c][tap]
        let stored = panels.pack(&plain);

        let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
        let mut dw = vec![0.0; plain.len()];
        direct(t, |to, from, tap| {
            for o in 0..k {
                for i in 0..c {
                    let w = plain[(o * c + i) * 9 + tap].wide();
                    y[to * k + o] += w * x[from * c + i].wide();
                    dx[from * c + i] += w * dy[to * k + o].wide();
                    dw[(o * c + i) * 9 + tap] += dy[to * k + o].wide() * x[from * c + i].wide();
                }
            }
        });

        let run = |tiles: Tiles, source: &[T], weight: &[T], turned: bool, len: usize| {
            let mut points = vec![T::ZERO; tiles.weight_len()];
            transform_weight(weight, tiles.inputs, tiles.outputs, turned, &mut points);
            let (mut out, mut scratch) = (vec![T::of(1.0); len], vec![T::of(f64::NAN); tiles.scratch_len()]);
            let bias = vec![T::of(0.5); tiles.outputs];
            let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::store(true) };
            let target = Shared::new(&mut out);
            let scratch = &mut scratch[..];
            let weight = &points[..];
            Convolution { tiles, source, weight, target, target_len: len, epilogue, sums: None, scratch }
                .run();
            out
        };
        let moved = |v: &[f64]| v.iter().map(|v| v + 1.5).collect::<Vec<_>>();
        assert!(deviation(&run(t, &x, &stored, false, y.len()), &moved(&y)) < tolerance, "{t:?} forward");

        let back = Tiles {
            source: t.target,
            target: t.source,
            before: t.before.map(|b| 2 - b),
            inputs: k,
            outputs: c,
            ..t
        };
        let mut turned = vec![T::ZERO; panels.transposed_len()];
        panels.transpose(&stored, &panels.transposed_panels(), &mut turned);
        assert!(deviation(&run(back, &dy, &turned, true, dx.len()), &moved(&dx)) < tolerance, "{t:?} data");

        let mut gradient = vec![T::of(f64::NAN); stored.len()];
        let mut scratch = vec![T::of(f64::NAN); t.gradient_scratch_len()];
        WeightGradient { tiles: t, source: &x, dy: &dy, gradient: &mut gradient, scratch: &mut scratch }
            .run();
        assert!(deviation(&panels.unpack(&gradient), &dw) < tolerance, "{t:?} weight");
    }

    /// In f64 it is the direct sum; in f32 the error stays near that of a direct sum.
    #[test]
    fn equals_the_direct_sum() {
        for (images, source, before, inputs, outputs) in [
            (1, [1, 1], [1, 1], 16, 16),
            (2, [5, 7], [1, 1], 32, 16),
            (3, [9, 4], [1, 1], 16, 80),
            (2, [6, 9], [0, 2], 48, 32),
            (1, [13, 12], [1, 1], 144, 160), // large weights: point by point
        ] {
            let target: [usize; 2] = std::array::from_fn(|i| source[i] + 2 * before[i] - 2);
            let t = Tiles { images, source, target, before, inputs, outputs };
            compare::<f64>(t, 1e-13);
            compare::<f32>(t, 1e-5);
        }
    }
}

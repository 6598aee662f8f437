//! Winograd's F(4x4, 3x3) (Lavin and Gray 2016): a 3x3 convolution of stride 1 as 36 matrix products over
//! tiles of 4x4 outputs, with a quarter of the multiplications.
//!
//! Weights are transformed to `U = G g G^T`, 6x6 input tiles to `V = B^T d B`; the products `M = U V` per
//! point give the outputs `A^T M A`. The data gradient uses the same kernel with transposed weights; the
//! weight gradient is `G^T (sum over tiles of V (A dy A^T)) G`. Rounding errors are about five times
//! those of direct convolution.

mod convolution;
mod gradient;
mod transform;

pub(crate) use convolution::Convolution;
pub(crate) use gradient::WeightGradient;
pub(crate) use transform::transform_weight;

use std::sync::OnceLock;

use crate::kernels::geometry::ConvGeo;
use crate::weight_packing::LANES;

/// Winograd is profitable if this times the number of tiles is at least inputs times outputs (measured).
const PER_WEIGHT: usize = 600;
/// Points of a transformed tile.
const POINTS: usize = 36;
/// Outputs of a tile along one axis.
const OUT: usize = 4;
/// Largest transformed weight, in values, that stays in L2: blocks of tiles iterate over all points.
/// Larger ones are read once per point for many tiles.
const MAX_CACHED: usize = 640 * 1024;
/// Maximum transformed values in flight for large weights.
const MAX_IN_FLIGHT: usize = 4 * 1024 * 1024;
/// Largest weight gradient, in values, that is accumulated in one copy per chunk of tiles.
const MAX_CHUNKED_GRADIENT: usize = 160 * 1024;
const CHUNKS: usize = 8;

/// Returns whether Winograd's algorithm is enabled: unless `STILLHOUSE_WINOGRAD=0`. Read once.
pub(crate) fn allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| std::env::var("STILLHOUSE_WINOGRAD").as_deref() != Ok("0"))
}

/// Tiling of a 3x3 convolution of stride 1 for one map size.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tiles {
    pub(crate) images: usize,
    /// Rows and columns of the source and of the target.
    pub(crate) source: [usize; 2],
    pub(crate) target: [usize; 2],
    /// Leading zero rows and columns of the source.
    pub(crate) before: [usize; 2],
    /// Channels of the source and of the target; multiples of [`LANES`].
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

    /// Returns the tiling of a forward pass if the convolution is supported and, with `nominal` images,
    /// profitable.
    pub(crate) fn new(geo: &ConvGeo, images: usize, nominal: usize) -> Option<Self> {
        let spec = &geo.spec;
        let served = spec.kernel == 3 && spec.stride == 1 && spec.dilation == 1 && spec.groups == 1;
        if !served || geo.before != [1, 1] || geo.output != geo.input {
            return None;
        }
        let (size, before) = (geo.input, geo.before);
        let tiles =
            Self { images, source: size, target: size, before, inputs: spec.inputs, outputs: spec.outputs };
        tiles.is_profitable(nominal).then_some(tiles)
    }

    /// Returns the tiling of the data gradient.
    pub(crate) fn transposed(self) -> Self {
        Self { inputs: self.outputs, outputs: self.inputs, ..self }
    }

    /// Returns whether there are enough tiles for the weights, and little enough of them lies outside the
    /// map.
    fn is_profitable(&self, nominal_images: usize) -> bool {
        let [th, tw] = self.across();
        let [h, w] = self.target;
        self.inputs.is_multiple_of(LANES)
            && self.outputs.is_multiple_of(LANES)
            && 10 * h * w > 6 * OUT * OUT * th * tw
            && nominal_images * th * tw * PER_WEIGHT >= self.inputs * self.outputs
    }

    /// Returns image, first row and first column of a tile in the target.
    fn position(&self, tile: usize) -> (usize, usize, usize) {
        let [th, tw] = self.across();
        (tile / (th * tw), tile / tw % th * OUT, tile % tw * OUT)
    }

    fn check<T>(&self, source: &[T], target_len: usize) {
        assert!(self.inputs.is_multiple_of(LANES) && self.outputs.is_multiple_of(LANES));
        assert!(source.len() >= self.images * self.source[0] * self.source[1] * self.inputs);
        assert!(target_len >= self.images * self.target[0] * self.target[1] * self.outputs);
    }

    /// Tiles per task that iterates over all points.
    fn block(&self) -> usize {
        (320 * 1024 / (POINTS * (self.inputs + self.outputs))).clamp(8, 96)
    }

    /// Returns the number of tasks that write sums.
    pub(crate) fn sum_tasks(&self) -> usize {
        if self.weight_len() <= MAX_CACHED {
            self.count().div_ceil(self.block())
        } else {
            self.count().div_ceil(4)
        }
    }

    /// Tiles in flight for large weights.
    fn many(&self) -> usize {
        (MAX_IN_FLIGHT / (POINTS * (self.inputs + self.outputs))).clamp(8, self.count().max(8)) / 4 * 4
    }

    /// Returns the length of a transformed weight.
    pub(crate) fn weight_len(&self) -> usize {
        POINTS * self.inputs * self.outputs
    }

    /// Returns the scratch length of a [`Convolution`].
    pub(crate) fn scratch_len(&self) -> usize {
        let per_tile = POINTS * (self.inputs + self.outputs);
        if self.weight_len() <= MAX_CACHED {
            rayon::current_num_threads() * self.block() * per_tile
        } else {
            self.many() * per_tile
        }
    }

    fn gradient_chunks(&self) -> usize {
        if self.weight_len() <= MAX_CHUNKED_GRADIENT { CHUNKS } else { 1 }
    }

    /// Returns the scratch length of a [`WeightGradient`].
    pub(crate) fn gradient_scratch_len(&self) -> usize {
        let per_tile = POINTS * (self.inputs + self.outputs);
        let chunks = self.gradient_chunks();
        let tiles = if chunks > 1 { rayon::current_num_threads() * self.block() } else { self.many() };
        chunks * self.weight_len() + tiles * per_tile
    }
}

/// Index of the calling thread's scratch buffer.
fn slot() -> usize {
    rayon::current_thread_index().unwrap_or(0)
}
#[cfg(test)]
mod tests {
    use super::super::SharedSlice;
    use super::super::indirect_gemm::Epilogue;
    use super::*;
    use crate::element::Float;
    use crate::rng::Rng;
    use crate::weight_packing::PackedLayout;

    fn random<T: Float>(stream: &str, len: usize) -> Vec<T> {
        let mut draw = Rng::new(5).stream(stream).at(0, 0);
        (0..len).map(|_| T::narrow(draw.normal())).collect()
    }

    /// Calls `f` for all pairs of an output and a kernel element inside the map.
    fn direct(t: Tiles, mut f: impl FnMut(usize, usize, usize)) {
        let ([h, w], [oh, ow]) = (t.source, t.target);
        for image in 0..t.images {
            for y in 0..oh {
                for x in 0..ow {
                    for kernel_offset in 0..9 {
                        let (sy, sx) = (y + kernel_offset / 3, x + kernel_offset % 3);
                        let (sy, sx) = (sy.wrapping_sub(t.before[0]), sx.wrapping_sub(t.before[1]));
                        if sy < h && sx < w {
                            f((image * oh + y) * ow + x, (image * h + sy) * w + sx, kernel_offset);
                        }
                    }
                }
            }
        }
    }

    /// Root mean square error relative to the expected root mean square.
    fn deviation<T: Float>(got: &[T], want: &[f64]) -> f64 {
        let rms = (want.iter().map(|v| v * v).sum::<f64>() / want.len() as f64).sqrt();
        let off = got.iter().zip(want).map(|(g, w)| (g.widen() - w).powi(2)).sum::<f64>();
        (off / want.len() as f64).sqrt() / rms
    }

    fn compare<T: Float>(t: Tiles, tolerance: f64) {
        let (c, k) = (t.inputs, t.outputs);
        let packing = PackedLayout::new(&[k, c, 3, 3], 1).unwrap();
        let (x, dy): (Vec<T>, Vec<T>) = (
            random("x", t.images * t.source[0] * t.source[1] * c),
            random("dy", t.images * t.target[0] * t.target[1] * k),
        );
        let plain: Vec<T> = random("w", 9 * c * k); // [k][c][kernel offset]
        let stored = packing.pack(&plain);

        let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
        let mut dw = vec![0.0; plain.len()];
        direct(t, |to, from, kernel_offset| {
            for o in 0..k {
                for i in 0..c {
                    let w = plain[(o * c + i) * 9 + kernel_offset].widen();
                    y[to * k + o] += w * x[from * c + i].widen();
                    dx[from * c + i] += w * dy[to * k + o].widen();
                    dw[(o * c + i) * 9 + kernel_offset] += dy[to * k + o].widen() * x[from * c + i].widen();
                }
            }
        });

        let run = |tiles: Tiles, source: &[T], weight: &[T], transposed: bool, len: usize| {
            let mut points = vec![T::ZERO; tiles.weight_len()];
            transform_weight(weight, tiles.inputs, tiles.outputs, transposed, &mut points);
            let (mut out, mut scratch) =
                (vec![T::narrow(1.0); len], vec![T::narrow(f64::NAN); tiles.scratch_len()]);
            let bias = vec![T::narrow(0.5); tiles.outputs];
            let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::store(true) };
            let target = SharedSlice::new(&mut out);
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
        let mut transposed = vec![T::ZERO; packing.transposed_len()];
        packing.transpose(&stored, &packing.transposed_panels(), &mut transposed);
        assert!(
            deviation(&run(back, &dy, &transposed, true, dx.len()), &moved(&dx)) < tolerance,
            "{t:?} data"
        );

        let mut gradient = vec![T::narrow(f64::NAN); stored.len()];
        let mut scratch = vec![T::narrow(f64::NAN); t.gradient_scratch_len()];
        WeightGradient { tiles: t, source: &x, dy: &dy, gradient: &mut gradient, scratch: &mut scratch }
            .run();
        assert!(deviation(&packing.unpack(&gradient), &dw) < tolerance, "{t:?} weight");
    }

    /// Exact in f64; in f32 the error stays near that of direct convolution.
    #[test]
    fn matches_direct_convolution() {
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

//! Convolution geometry: index tables computed once per layer and input size.

use crate::{Error, Result};

/// Zero padding of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Padding {
    /// The same on all four sides.
    Symmetric(usize),
    /// TensorFlow's "same": the output has `ceil(size / stride)` rows and columns; an odd total puts the
    /// larger part after.
    Same,
}

/// Hyperparameters of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvSpec {
    /// Input channels.
    pub inputs: usize,
    /// Output channels.
    pub outputs: usize,
    /// Kernel size, for rows and columns.
    pub kernel: usize,
    /// Stride, for rows and columns.
    pub stride: usize,
    /// Zero padding.
    pub padding: Padding,
    /// Dilation, for rows and columns.
    pub dilation: usize,
    /// Channel groups.
    pub groups: usize,
}

impl ConvSpec {
    /// Creates a convolution with stride 1, dilation 1, one group, and padding that keeps the size for
    /// odd kernels.
    pub fn new(inputs: usize, outputs: usize, kernel: usize) -> Self {
        let padding = Padding::Symmetric(kernel / 2);
        Self { inputs, outputs, kernel, stride: 1, padding, dilation: 1, groups: 1 }
    }
    /// Sets the stride.
    #[must_use]
    pub fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }
    /// Sets the padding.
    #[must_use]
    pub fn padding(self, padding: Padding) -> Self {
        Self { padding, ..self }
    }
    /// Sets the dilation.
    #[must_use]
    pub fn dilation(self, dilation: usize) -> Self {
        Self { dilation, ..self }
    }
    /// Sets the number of groups.
    #[must_use]
    pub fn groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Returns the shape of the weight, `[out, in / groups, k, k]`.
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.outputs, self.inputs / self.groups.max(1), self.kernel, self.kernel]
    }

    /// Returns whether each channel is convolved separately.
    pub fn depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.inputs && self.groups == self.outputs
    }

    /// Rejects invalid hyperparameters.
    pub(crate) fn check(&self) -> Result<()> {
        let bad = self.inputs == 0
            || self.outputs == 0
            || self.kernel == 0
            || self.stride == 0
            || self.dilation == 0
            || self.groups == 0
            || !self.inputs.is_multiple_of(self.groups)
            || !self.outputs.is_multiple_of(self.groups);
        if bad {
            return Err(Error::shape("conv", "positive sizes, channels divisible by the groups", self));
        }
        Ok(())
    }

    /// Returns the output length and the leading padding for an axis of length `size`.
    pub(crate) fn along(&self, size: usize) -> Result<(usize, usize)> {
        let reach = self.dilation * (self.kernel - 1) + 1;
        match self.padding {
            Padding::Symmetric(p) => {
                let padded = size + 2 * p;
                if size == 0 || padded < reach {
                    return Err(Error::shape(
                        "conv",
                        format!(
                            "a map of at least {} pixels with padding {p}",
                            reach.saturating_sub(2 * p).max(1)
                        ),
                        size,
                    ));
                }
                Ok(((padded - reach) / self.stride + 1, p))
            }
            Padding::Same => {
                if size == 0 {
                    return Err(Error::shape("conv", "a map of at least one pixel", size));
                }
                let out = size.div_ceil(self.stride);
                Ok((out, ((out - 1) * self.stride + reach).saturating_sub(size) / 2))
            }
        }
    }

    /// Returns the output rows and columns for an input of `h` x `w`.
    pub fn output_size(&self, h: usize, w: usize) -> Result<(usize, usize)> {
        Ok((self.along(h)?.0, self.along(w)?.0))
    }

    /// Returns the multiply-accumulates for one image of `h` x `w`, padding included.
    pub fn macs(&self, h: usize, w: usize) -> Result<u64> {
        let (oh, ow) = self.output_size(h, w)?;
        Ok(self.macs_of([oh, ow]))
    }

    /// Returns the multiply-accumulates for an output of the given size.
    fn macs_of(&self, [oh, ow]: [usize; 2]) -> u64 {
        let [o, i, kh, kw] = self.weight_shape();
        (oh * ow * o * i * kh * kw) as u64
    }
}

/// Row tables of an indirect GEMM: for output row `q` of an image and kernel offset `t`, the source
/// starts at `table[t * p + q]` within the image, or is padding (-1).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rows {
    /// Rows per image.
    pub(crate) p: usize,
    /// Index of each kernel offset's block in the weight panels.
    pub(crate) kernel_offsets: Vec<usize>,
    /// Values read per kernel offset and row.
    pub(crate) kc: usize,
    /// Source offsets.
    pub(crate) table: Vec<i32>,
    /// Start of row `q` in the target image.
    pub(crate) target: Vec<u32>,
}

/// All tables of a convolution for one map size.
#[derive(Debug)]
pub(crate) struct ConvGeo {
    pub(crate) spec: ConvSpec,
    /// Input rows and columns.
    pub(crate) input: [usize; 2],
    /// Output rows and columns.
    pub(crate) output: [usize; 2],
    /// Leading padding: rows, columns.
    pub(crate) before: [usize; 2],
    /// Forward pass.
    pub(crate) forward: Rows,
    /// Data gradient, one per stride phase; a phase without kernel offsets is zero.
    pub(crate) backward: Vec<Rows>,
    /// Size of the zero-padded source copy that `forward` reads, if any. With few channels a whole kernel
    /// row is then one kernel offset of `kernel * channels` values.
    pub(crate) padded: Option<[usize; 2]>,
}

impl ConvGeo {
    /// Builds the tables for maps of `h` x `w`.
    pub(crate) fn new(spec: ConvSpec, h: usize, w: usize) -> Result<Self> {
        spec.check()?;
        let ((oh, top), (ow, left)) = (spec.along(h)?, spec.along(w)?);
        let (k, d, s) = (spec.kernel, spec.dilation, spec.stride);
        let wide = (h + 2 * top + d * k) * (w + 2 * left + d * k) * spec.inputs.max(1);
        if wide.max(oh * ow * spec.outputs) > i32::MAX as usize {
            return Err(Error::shape("conv", "a map of less than 2^31 values", [h, w, spec.inputs]));
        }
        let few = spec.groups == 1 && spec.inputs < 16 && k > 1 && d == 1;
        let target: Vec<u32> = (0..oh * ow).map(|q| (q * spec.outputs) as u32).collect();
        let mut padded = None;
        let forward = if few {
            let (ph, pw) = ((oh - 1) * s + k, (ow - 1) * s + k);
            padded = Some([ph, pw]);
            let mut table = Vec::with_capacity(k * oh * ow);
            for ky in 0..k {
                for y in 0..oh {
                    for x in 0..ow {
                        table.push((((y * s + ky) * pw + x * s) * spec.inputs) as i32);
                    }
                }
            }
            Rows { p: oh * ow, kernel_offsets: (0..k).collect(), kc: k * spec.inputs, table, target }
        } else {
            let mut table = Vec::with_capacity(k * k * oh * ow);
            for ky in 0..k {
                for kx in 0..k {
                    for y in 0..oh {
                        for x in 0..ow {
                            let iy = (y * s + ky * d).wrapping_sub(top);
                            let ix = (x * s + kx * d).wrapping_sub(left);
                            let inside = iy < h && ix < w;
                            table.push(if inside { ((iy * w + ix) * spec.inputs) as i32 } else { -1 });
                        }
                    }
                }
            }
            let mut rows = Rows {
                p: oh * ow,
                kernel_offsets: (0..k * k).collect(),
                kc: spec.inputs / spec.groups,
                table,
                target,
            };
            rows.drop_empty_offsets();
            rows
        };
        let mut geo = Self {
            spec,
            input: [h, w],
            output: [oh, ow],
            before: [top, left],
            forward,
            backward: Vec::new(),
            padded,
        };
        geo.backward = geo.phases();
        Ok(geo)
    }

    /// Lists, for each residue of the input position modulo the stride, the kernel offsets that reach it.
    fn phases(&self) -> Vec<Rows> {
        let spec = &self.spec;
        let ([h, w], [oh, ow], [top, left]) = (self.input, self.output, self.before);
        let (k, d, s) = (spec.kernel, spec.dilation, spec.stride);
        // Output position that reads input position `i` through kernel element `ke`.
        let reach = |i: usize, before: usize, ke: usize, out: usize| -> Option<usize> {
            let at = (i + before).checked_sub(ke * d)?;
            (at % s == 0 && at / s < out).then_some(at / s)
        };
        let mut phases = Vec::new();
        for py in 0..s.min(h) {
            for px in 0..s.min(w) {
                let pixels: Vec<(usize, usize)> =
                    (py..h).step_by(s).flat_map(|y| (px..w).step_by(s).map(move |x| (y, x))).collect();
                let mut rows = Rows {
                    p: pixels.len(),
                    kernel_offsets: Vec::new(),
                    kc: spec.outputs / spec.groups,
                    table: Vec::new(),
                    target: pixels.iter().map(|(y, x)| ((y * w + x) * spec.inputs) as u32).collect(),
                };
                for ky in 0..k {
                    for kx in 0..k {
                        let offsets: Vec<i32> = pixels
                            .iter()
                            .map(|(y, x)| match (reach(*y, top, ky, oh), reach(*x, left, kx, ow)) {
                                (Some(oy), Some(ox)) => ((oy * ow + ox) * spec.outputs) as i32,
                                _ => -1,
                            })
                            .collect();
                        if offsets.iter().any(|o| *o >= 0) {
                            rows.kernel_offsets.push(ky * k + kx);
                            rows.table.extend(offsets);
                        }
                    }
                }
                phases.push(rows);
            }
        }
        phases
    }

    /// Returns a label for profiling.
    pub(crate) fn label(&self, part: &str) -> String {
        let (s, [h, w]) = (&self.spec, self.input);
        let groups = if s.groups > 1 { format!(" in {} groups", s.groups) } else { String::new() };
        format!(
            "conv {} to {}, {k}x{k}{groups}, stride {}, on {h}x{w}: {part}",
            s.inputs,
            s.outputs,
            s.stride,
            k = s.kernel
        )
    }

    /// Returns the multiply-accumulates for a batch.
    pub(crate) fn macs(&self, images: usize) -> u64 {
        images as u64 * self.spec.macs_of(self.output)
    }

    /// Returns the length of one image of the forward source.
    pub(crate) fn source_len(&self) -> usize {
        let [h, w] = self.padded.unwrap_or(self.input);
        h * w * self.spec.inputs
    }
}

impl Rows {
    /// Splits the table by kernel offset: index and reached rows of each, with those that reach all rows
    /// first. Such rows read the weights of one kernel offset.
    pub(crate) fn by_offset(&self) -> Vec<(usize, Self)> {
        let mut kernel_offsets: Vec<(usize, Self)> = self
            .kernel_offsets
            .iter()
            .zip(self.table.chunks(self.p))
            .map(|(kernel_offset, offsets)| {
                let reached = || (0..self.p).filter(|q| offsets[*q] >= 0);
                let (table, target): (Vec<i32>, Vec<u32>) =
                    reached().map(|q| (offsets[q], self.target[q])).unzip();
                (*kernel_offset, Self { p: table.len(), kernel_offsets: vec![0], kc: self.kc, table, target })
            })
            .collect();
        kernel_offsets.sort_by_key(|(_, rows)| rows.p < self.p);
        kernel_offsets
    }

    /// Drops kernel offsets that read only padding (small maps, large dilation).
    fn drop_empty_offsets(&mut self) {
        let p = self.p;
        let keep: Vec<usize> = (0..self.kernel_offsets.len())
            .filter(|t| self.table[t * p..(t + 1) * p].iter().any(|o| *o >= 0))
            .collect();
        if keep.len() < self.kernel_offsets.len() {
            self.table = keep.iter().flat_map(|t| self.table[t * p..(t + 1) * p].iter().copied()).collect();
            self.kernel_offsets = keep.iter().map(|t| self.kernel_offsets[*t]).collect();
        }
    }
}

/// Copies NHWC images into zero-padded ones with `before` leading rows and columns. Rows and columns that
/// no kernel offset reaches are cut off.
pub(crate) fn pad_images<T: Copy + Default>(
    src: &[T],
    [h, w]: [usize; 2],
    channels: usize,
    [top, left]: [usize; 2],
    [ph, pw]: [usize; 2],
    dst: &mut [T],
) {
    dst.fill(T::default());
    let (src_len, dst_len) = (h * w * channels, ph * pw * channels);
    let columns = w.min(pw.saturating_sub(left)) * channels;
    for (src, dst) in src.chunks_exact(src_len).zip(dst.chunks_exact_mut(dst_len)) {
        for y in 0..h.min(ph.saturating_sub(top)) {
            let at = ((y + top) * pw + left) * channels;
            dst[at..at + columns].copy_from_slice(&src[y * w * channels..y * w * channels + columns]);
        }
    }
}

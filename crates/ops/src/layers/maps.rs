//! Layers without parameters.

use crate::Result;
use crate::node::Node;
use crate::op::Op;
use crate::tape::Tape;

impl Tape {
    /// Max pooling that ignores padding: `[B, C, H, W]` to `[B, C, (H + 2p - k) / s + 1, (W + 2p - k) / s
    /// + 1]`. The gradient goes to the first maximum of a window, as in PyTorch.
    pub fn max_pool(&mut self, x: &Node, kernel: usize, stride: usize, padding: usize) -> Result<Node> {
        self.apply(Op::MaxPool { kernel, stride, padding }, &[x])
    }

    /// Global average pooling: `[B, C, H, W]` to the vector `[B, C]`.
    pub fn global_avg_pool(&mut self, x: &Node) -> Result<Node> {
        self.apply(Op::GlobalAveragePool, &[x])
    }

    /// Adds two maps of one shape.
    pub fn add(&mut self, a: &Node, b: &Node) -> Result<Node> {
        self.apply(Op::Add, &[a, b])
    }

    /// Computes `max(x, 0)`; the derivative at 0 is 0.
    pub fn relu(&mut self, x: &Node) -> Result<Node> {
        self.apply(Op::Relu, &[x])
    }

    /// GELU, `x * CDF(x)` of the standard normal, in the exact form with the error function (Hendrycks
    /// and Gimpel, "Gaussian Error Linear Units", 2016, arXiv 1606.08415).
    pub fn gelu(&mut self, x: &Node) -> Result<Node> {
        self.apply(Op::Gelu, &[x])
    }

    /// Exponential linear unit: `x` above zero, `exp(x) - 1` below (Clevert et al., "Fast and Accurate
    /// Deep Network Learning by Exponential Linear Units", ICLR 2016, arXiv 1511.07289, with alpha 1).
    /// Single-threaded on the CPU: intended for vectors.
    pub fn elu(&mut self, x: &Node) -> Result<Node> {
        self.apply(Op::Elu, &[x])
    }

    /// Drops values with probability `p` in training and scales the rest by `1 / (1 - p)`. The mask
    /// depends only on the seed, the step and the position in the network.
    pub fn dropout(&mut self, x: &Node, p: f64) -> Result<Node> {
        self.drop(Op::Dropout { p }, x, p)
    }

    /// Drops all values of an image with probability `p` in training and scales the others by `1 / (1 -
    /// p)`: stochastic depth for the branch of a residual block (Huang et al., "Deep Networks with
    /// Stochastic Depth", ECCV 2016, DOI 10.1007/978-3-319-46493-0_39). The choice depends only on the
    /// seed, the step and the position in the network.
    pub fn drop_path(&mut self, x: &Node, p: f64) -> Result<Node> {
        self.drop(Op::DropPath { p }, x, p)
    }

    fn drop(&mut self, op: Op, x: &Node, p: f64) -> Result<Node> {
        op.output(&[x.value])?;
        if self.mode().trains() && p > 0.0 { self.apply(op, &[x]) } else { Ok(x.clone()) }
    }

    /// Concatenates along the channels: maps `[B, C1, H, W]`, `[B, C2, H, W]`, ... to `[B, C1 + C2 + ...,
    /// H, W]`; likewise vectors.
    pub fn concat(&mut self, inputs: &[&Node]) -> Result<Node> {
        self.apply(Op::Concat, inputs)
    }

    /// Bilinear interpolation to `size` rows and columns, as PyTorch's `interpolate`: with
    /// `align_corners` the centers of the corner pixels are aligned, without it the edges of the maps
    /// (`source = (i + 0.5) * in / out - 0.5`, at least 0). `[B, C, H, W]` to `[B, C, size.0, size.1]`.
    pub fn resize_bilinear(&mut self, x: &Node, size: (usize, usize), align_corners: bool) -> Result<Node> {
        self.resample(Op::Resize { size: size.into(), align_corners }, x, size)
    }

    /// Adaptive average pooling: `[B, C, H, W]` to `[B, C, size.0, size.1]`; bin `i` of `n` covers
    /// `floor(i * H / n) .. ceil((i + 1) * H / n)`.
    pub fn adaptive_avg_pool(&mut self, x: &Node, size: (usize, usize)) -> Result<Node> {
        self.resample(Op::AdaptiveAveragePool { size: size.into() }, x, size)
    }

    fn resample(&mut self, op: Op, x: &Node, size: (usize, usize)) -> Result<Node> {
        if size == x.size() { Ok(x.clone()) } else { self.apply(op, &[x]) }
    }

    /// Broadcasts a vector `[B, C]` (or a map of one pixel) to all pixels: `[B, C, size.0, size.1]`.
    pub fn expand(&mut self, x: &Node, size: (usize, usize)) -> Result<Node> {
        self.apply(Op::Expand { size: size.into() }, &[x])
    }

    /// Concatenates 2 x 2 neighbors along the channels, `[B, C, H, W]` to `[B, 4C, ceil(H / 2), ceil(W /
    /// 2)]`, in the order (row 0, column 0), (1, 0), (0, 1), (1, 1); an odd edge is zero-padded. The
    /// first half of Swin's patch merging.
    pub fn merge_patches(&mut self, x: &Node) -> Result<Node> {
        self.apply(Op::MergePatches, &[x])
    }
}

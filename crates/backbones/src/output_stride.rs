//! Output stride: dilation instead of striding.

use stillhouse_core::{Error, Result};

/// Strides and dilations of the stages of a backbone with a given output stride. Once it is reached,
/// each stride of 2 is replaced by doubling the dilation of the following convolutions.
#[derive(Debug)]
pub(crate) struct OutputStride {
    limit: usize,
    reached: usize,
    dilation: usize,
}

/// Stride and dilations of one stage.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StageStride {
    /// Stride of the strided convolution.
    pub(crate) stride: usize,
    /// Dilation of the strided convolution, which is that of the previous stage.
    pub(crate) first_dilation: usize,
    /// Dilation of the other convolutions.
    pub(crate) dilation: usize,
}

impl OutputStride {
    /// Creates the strides for an output stride of 8, 16 or 32, after a stem of stride `reached`.
    pub(crate) fn new(component: &str, limit: usize, reached: usize) -> Result<Self> {
        if ![8, 16, 32].contains(&limit) {
            return Err(Error::incompatible(
                component,
                format!("invalid output_stride: expected 8, 16 or 32, found {limit}"),
            ));
        }
        Ok(Self { limit, reached, dilation: 1 })
    }

    /// Returns stride and dilations of the next stage, whose nominal stride is given.
    pub(crate) fn stage(&mut self, stride: usize) -> StageStride {
        let first_dilation = self.dilation;
        if self.reached * stride > self.limit {
            self.dilation *= stride;
            return StageStride { stride: 1, first_dilation, dilation: self.dilation };
        }
        self.reached *= stride;
        StageStride { stride, first_dilation, dilation: first_dilation }
    }

    /// Returns the stride of the feature map so far.
    pub(crate) fn reached(&self) -> usize {
        self.reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_strides_by_dilations() {
        let stages = |limit| {
            let mut d = OutputStride::new("net", limit, 4).unwrap();
            [1, 2, 2, 2].map(|s| d.stage(s)).map(|s| (s.stride, s.first_dilation, s.dilation))
        };
        assert_eq!(stages(32), [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]);
        assert_eq!(stages(16), [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]);
        assert_eq!(stages(8), [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]);
        let e = OutputStride::new("net", 12, 4).unwrap_err().to_string();
        assert!(e.contains("expected 8, 16 or 32, found 12"), "{e}");
    }
}

//! Output stride: dilation in place of stride.

use stillhouse_core::{Error, Result};

/// Gives every stage its stride and dilations, so that the map never gets coarser than the output
/// stride: from there on a stride of 2 becomes a dilation of 2 for what follows.
#[derive(Debug)]
pub(crate) struct Dilate {
    limit: usize,
    reached: usize,
    dilation: usize,
}

/// What a stage that asked for a stride gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Steps {
    /// Stride of its strided convolution.
    pub(crate) stride: usize,
    /// Dilation of its strided convolution: still that of the stage before.
    pub(crate) first: usize,
    /// Dilation of everything after that.
    pub(crate) rest: usize,
}

impl Dilate {
    /// `limit`: the output stride, 32, 16 or 8. `reached`: the stride of the stem.
    pub(crate) fn new(who: &str, limit: usize, reached: usize) -> Result<Self> {
        if ![8, 16, 32].contains(&limit) {
            return Err(Error::incompatible(who, format!("output_stride is {limit}; allowed are 32, 16, 8")));
        }
        Ok(Self { limit, reached, dilation: 1 })
    }

    /// The next stage, which asks for `stride`.
    pub(crate) fn stage(&mut self, stride: usize) -> Steps {
        let first = self.dilation;
        if self.reached * stride > self.limit {
            self.dilation *= stride;
            return Steps { stride: 1, first, rest: self.dilation };
        }
        self.reached *= stride;
        Steps { stride, first, rest: first }
    }

    /// Input pixels per map pixel so far.
    pub(crate) fn reached(&self) -> usize {
        self.reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_become_dilations() {
        let stages = |limit| {
            let mut d = Dilate::new("net", limit, 4).unwrap();
            [1, 2, 2, 2].map(|s| d.stage(s)).map(|s| (s.stride, s.first, s.rest))
        };
        assert_eq!(stages(32), [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]);
        assert_eq!(stages(16), [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]);
        assert_eq!(stages(8), [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]);
        let e = Dilate::new("net", 12, 4).unwrap_err().to_string();
        assert!(e.contains("12") && e.contains("32, 16, 8"), "{e}");
    }
}

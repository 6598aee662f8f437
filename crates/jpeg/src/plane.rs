//! Samples of a component.

use crate::frame::{Component, Frame};

/// Samples of a component, padded to whole units.
pub(crate) struct Plane {
    pub(crate) stride: usize,
    /// Samples of a row, without the padding.
    pub(crate) width: usize,
    pub(crate) height: usize,
    samples: Vec<u8>,
}

impl Plane {
    /// Creates a gray plane.
    pub(crate) fn new(frame: &Frame, component: &Component) -> Self {
        let stride = 8 * frame.columns * component.across;
        let samples = vec![128; stride * 8 * frame.rows * component.down];
        Self { stride, width: component.width, height: component.height, samples }
    }

    /// Stores a block at block coordinates.
    #[inline(always)]
    pub(crate) fn set_block(&mut self, x: usize, y: usize, block: &[[u8; 8]; 8]) {
        let stride = self.stride;
        let out = &mut self.samples[8 * (y * stride + x)..][..7 * stride + 8];
        for (i, row) in block.iter().enumerate() {
            out[i * stride..][..8].copy_from_slice(row);
        }
    }

    #[inline(always)]
    pub(crate) fn row(&self, y: usize) -> &[u8] {
        &self.samples[y * self.stride..][..self.width]
    }
}

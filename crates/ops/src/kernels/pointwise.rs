//! Fused backward pass of a 1x1 convolution with batch norm: the gradient between the two is computed for
//! a block of rows at a time and used for both the weight and the input gradient while it is in the
//! cache, instead of being written to memory once and read twice.
//!
//! Results are bit-identical to the separate passes.

#![allow(unsafe_code)]

use super::geometry::Rows;
use super::indirect_gemm::{Epilogue, IndirectGemm};
use super::norm::Slopes;
use super::wgrad::{WeightGradient, add_chunks, chunk, chunks};
use super::{SharedSlice, parallel};
use crate::element::Float;
use crate::weight_packing::Panel;

/// Map values per block.
const BLOCK_VALUES: usize = 64 * 1024;
/// Smallest maps, in values, that do not stay in the cache by themselves.
const MIN_VALUES: usize = 1 << 20;
/// Rows per task of [`IndirectGemm`]; blocks are multiples of it.
const STEP: usize = 48;

pub(crate) struct Pointwise<'a, T> {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// `[rows, inputs]`.
    pub(crate) source: &'a [T],
    /// Gradient of the norm's output, and the norm's input: `[rows, outputs]`.
    pub(crate) dz: &'a [T],
    pub(crate) y: &'a [T],
    pub(crate) slopes: Slopes<'a, T>,
    pub(crate) panels: &'a [Panel],
    /// The transposed weight and its panels.
    pub(crate) transposed: &'a [T],
    pub(crate) transposed_panels: &'a [Panel],
    /// Packed weight gradient; all values are written.
    pub(crate) gradient: &'a mut [T],
    /// See [`WeightGradient::scratch`].
    pub(crate) scratch: &'a mut [T],
    /// Input gradient, added to if `accumulate`.
    pub(crate) dx: &'a mut [T],
    pub(crate) accumulate: bool,
    /// [`block_len`] values per thread.
    pub(crate) blocks: &'a mut [T],
    /// At least `outputs` zeros.
    pub(crate) zeros: &'a [T],
}

/// Returns whether the fused pass is used. Maps that fit the cache gain nothing. The tasks here are the
/// row chunks of the weight gradient, so more threads than chunks are better used by the separate passes.
pub(crate) fn is_profitable(rows: usize, inputs: usize, outputs: usize, stored: usize) -> bool {
    let chunks = chunks(rows, stored);
    rows * (inputs + outputs) >= MIN_VALUES && chunks > 1 && rayon::current_num_threads() <= chunks
}

fn block_rows(inputs: usize, outputs: usize) -> usize {
    (BLOCK_VALUES / (inputs + outputs) / STEP).max(2) * STEP
}

/// Returns the length of a block's gradient.
pub(crate) fn block_len(inputs: usize, outputs: usize) -> usize {
    block_rows(inputs, outputs) * outputs
}

/// Row table of a matrix.
fn dense(rows: usize, from: usize, to: usize) -> Rows {
    let table = (0..rows).map(|i| (i * from) as i32).collect();
    let target = (0..rows).map(|i| (i * to) as u32).collect();
    Rows { p: rows, kernel_offsets: vec![0], kc: from, table, target }
}

impl<T: Float> Pointwise<'_, T> {
    pub(crate) fn run(self) {
        let (inputs, outputs, stored) = (self.inputs, self.outputs, self.gradient.len());
        let rows = self.dz.len() / outputs;
        assert!(self.source.len() == rows * inputs && self.y.len() == rows * outputs);
        let chunks = chunks(rows, stored);
        let (step, held) = (block_rows(inputs, outputs), block_len(inputs, outputs));
        let (gradient, scratch) = (SharedSlice::new(self.gradient), SharedSlice::new(self.scratch));
        let (dx, blocks) = (SharedSlice::new(self.dx), SharedSlice::new(self.blocks));
        parallel(chunks, |number| {
            let range = chunk(rows, chunks, number);
            let slot = rayon::current_thread_index().unwrap_or(0);
            // SAFETY: one copy per chunk and one block per thread, which no other task uses until this
            // one ends.
            let (into, block) = unsafe {
                let into = match number {
                    0 => gradient.range(0, stored),
                    _ => scratch.range((number - 1) * stored, stored),
                };
                (into, blocks.range(slot * held, held))
            };
            if range.is_empty() {
                into.fill(T::ZERO);
            }
            for start in range.clone().step_by(step) {
                let count = step.min(range.end - start);
                let part = start * outputs..(start + count) * outputs;
                let dy = &mut block[..count * outputs];
                self.slopes.rows(&self.dz[part.clone()], &self.y[part], dy);
                WeightGradient {
                    images: 1,
                    rows: &dense(count, inputs, outputs),
                    source: &self.source[start * inputs..][..count * inputs],
                    source_len: count * inputs,
                    source_first: 0,
                    dy,
                    dy_len: count * outputs,
                    dy_first: 0,
                    panels: self.panels,
                    gradient: &mut [],
                    scratch: &mut [],
                }
                .run_here(into, start == range.start);
                // SAFETY: chunks have disjoint rows.
                let dx = unsafe { dx.range(start * inputs, count * inputs) };
                IndirectGemm {
                    images: 1,
                    rows: &dense(count, outputs, inputs),
                    source: dy,
                    source_len: count * outputs,
                    source_first: 0,
                    target_first: 0,
                    weight: self.transposed,
                    panels: self.transposed_panels,
                    target: SharedSlice::new(dx),
                    target_len: count * inputs,
                    epilogue: Epilogue::store(self.accumulate),
                    zeros: self.zeros,
                    sums: None,
                }
                .run_here();
            }
        });
        // SAFETY: all tasks have finished.
        let (gradient, scratch) =
            unsafe { (gradient.range(0, stored), scratch.range(0, (chunks - 1) * stored)) };
        add_chunks(gradient, scratch, chunks);
    }
}

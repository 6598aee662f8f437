//! Backward pass of a 1x1 convolution before a batch norm in one go: the gradient between the two is
//! made for some rows at a time and used for the weight and for the input while it is in the cache,
//! in place of being written to memory once and read twice.
//!
//! The values are those of the separate passes, bit by bit.

#![allow(unsafe_code)]

use super::geometry::Rows;
use super::indirect_gemm::{Epilogue, IndirectGemm};
use super::norm::Slopes;
use super::wgrad::{WeightGradient, add_chunks, chunk, chunks};
use super::{Shared, parallel};
use crate::element::Float;
use crate::weight_packing::Panel;

/// Values of maps that are worked on at a time.
const HELD: usize = 64 * 1024;
/// Values of maps from which on they do not stay in the cache.
const LEAST: usize = 1 << 20;
/// Rows of a task of [`IndirectGemm`], which blocks are multiples of.
const STEP: usize = 48;

pub(crate) struct Pointwise<'a, T> {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    /// `[rows, inputs]`.
    pub(crate) source: &'a [T],
    /// Gradient behind the norm, and what went into the norm: `[rows, outputs]`.
    pub(crate) dz: &'a [T],
    pub(crate) y: &'a [T],
    pub(crate) slopes: Slopes<'a, T>,
    pub(crate) panels: &'a [Panel],
    /// The weight turned, and its panels.
    pub(crate) turned: &'a [T],
    pub(crate) turned_panels: &'a [Panel],
    /// Of the weight, in panel order; written whole.
    pub(crate) gradient: &'a mut [T],
    /// As [`WeightGradient::scratch`].
    pub(crate) scratch: &'a mut [T],
    /// Of the input, which is added to what is there if `accumulate`.
    pub(crate) dx: &'a mut [T],
    pub(crate) accumulate: bool,
    /// [`block_len`] values for each thread.
    pub(crate) blocks: &'a mut [T],
    /// At least `outputs` zeros.
    pub(crate) zeros: &'a [T],
}

/// Whether this pass serves. Maps that stay in the cache by themselves gain nothing; and the weight
/// gradient is summed in chunks of rows, which are all the tasks that there are here, so that more
/// threads are better used by the separate passes.
pub(crate) fn serves(rows: usize, inputs: usize, outputs: usize, stored: usize) -> bool {
    let chunks = chunks(rows, stored);
    rows * (inputs + outputs) >= LEAST && chunks > 1 && rayon::current_num_threads() <= chunks
}

fn block_rows(inputs: usize, outputs: usize) -> usize {
    (HELD / (inputs + outputs) / STEP).max(2) * STEP
}

/// Values of a block's gradient.
pub(crate) fn block_len(inputs: usize, outputs: usize) -> usize {
    block_rows(inputs, outputs) * outputs
}

/// Rows of maps without spatial neighbors.
fn dense(rows: usize, from: usize, to: usize) -> Rows {
    let table = (0..rows).map(|i| (i * from) as i32).collect();
    let target = (0..rows).map(|i| (i * to) as u32).collect();
    Rows { p: rows, taps: vec![0], kc: from, table, target }
}

impl<T: Float> Pointwise<'_, T> {
    pub(crate) fn run(self) {
        let (inputs, outputs, stored) = (self.inputs, self.outputs, self.gradient.len());
        let rows = self.dz.len() / outputs;
        assert!(self.source.len() == rows * inputs && self.y.len() == rows * outputs);
        let chunks = chunks(rows, stored);
        let (step, held) = (block_rows(inputs, outputs), block_len(inputs, outputs));
        let (gradient, scratch) = (Shared::new(self.gradient), Shared::new(self.scratch));
        let (dx, blocks) = (Shared::new(self.dx), Shared::new(self.blocks));
        parallel(chunks, |number| {
            let range = chunk(rows, chunks, number);
            let slot = rayon::current_thread_index().unwrap_or(0);
            // SAFETY: a copy of its own for each chunk, a block for each thread, which a task leaves to
            // no other before it ends.
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
                    weight: self.turned,
                    panels: self.turned_panels,
                    target: Shared::new(dx),
                    target_len: count * inputs,
                    epilogue: Epilogue::store(self.accumulate),
                    zeros: self.zeros,
                    sums: None,
                }
                .run_here();
            }
        });
        // SAFETY: all tasks have ended.
        let (gradient, scratch) =
            unsafe { (gradient.range(0, stored), scratch.range(0, (chunks - 1) * stored)) };
        add_chunks(gradient, scratch, chunks);
    }
}

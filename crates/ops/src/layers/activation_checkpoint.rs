//! Gradient checkpointing: segments of a network whose intermediate values are recomputed in the backward
//! pass.
//!
//! *Source*: Chen, Xu, Zhang, Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv
//! 1604.06174.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::buffers::Buf;
use crate::element::with_values;
use crate::layers::Record;
use crate::tape::{Backward, Elem, Node, Tape, dispatch_dtype};
use crate::{Error, ParamId, Result};

/// Position relative to a checkpointed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SegmentPass {
    Outside,
    /// Inside a segment, in the forward pass.
    First,
    /// Inside a segment that is recomputed in the backward pass.
    Again,
}

/// Forward function of a segment.
type Segment = Arc<dyn Fn(&Node, &mut Tape) -> Result<Node> + Send + Sync>;

/// A segment of which only the input is kept.
pub(crate) struct CheckpointRecord<T> {
    pub(crate) out: usize,
    x: Node,
    /// Index of its first inner node. Recomputed nodes get the same indices, and so draw the same random
    /// numbers.
    first: usize,
    segment: Segment,
    /// Shifts of its batch statistics: the running means have changed since.
    shifts: VecDeque<Vec<T>>,
}

impl<T> std::fmt::Debug for CheckpointRecord<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CheckpointRecord")
            .field("out", &self.out)
            .field("first", &self.first)
            .finish_non_exhaustive()
    }
}

impl<T: Elem> CheckpointRecord<T> {
    /// Recomputes the segment and propagates the gradient through it.
    pub(crate) fn backward(self, dy: Buf<T>, back: &mut Backward<T>, tape: &mut Tape) -> Result<()> {
        let (out, records) =
            tape.again::<T>(self.first, self.shifts, |tape| (self.segment)(&self.x, tape))?;
        if out.id != self.out {
            return Err(Error::usage(
                "gradient_checkpoint",
                "the segment was not deterministic: recomputation ended at another node",
            ));
        }
        back.add(self.out, dy);
        for record in records.into_iter().rev() {
            tape.go_back(record, back)?;
        }
        Ok(())
    }
}

impl Tape {
    /// Enables gradient checkpointing of segments run by [`Tape::gradient_checkpoint`]. Off by default.
    pub fn set_gradient_checkpointing(&mut self, on: bool) {
        self.gradient_checkpointing = on;
    }

    /// Runs a segment of a network. With [`Tape::set_gradient_checkpointing`] its intermediate values are
    /// dropped and recomputed in the backward pass: bit-identical values and gradients, for one more
    /// forward pass through the segment. Recomputation does not update running statistics and draws the
    /// same random numbers. `segment` must not use other nodes of this pass than its argument.
    pub fn gradient_checkpoint(
        &mut self,
        x: &Node,
        segment: impl Fn(&Node, &mut Tape) -> Result<Node> + Send + Sync + 'static,
    ) -> Result<Node> {
        let inside = self.segment != SegmentPass::Outside; // a nested segment would save nothing more
        // The graph engine manages its own intermediate values.
        if self.graph_state.is_some()
            || !self.gradient_checkpointing
            || !self.mode().records()
            || inside
            || self.is_tracing()
        {
            return segment(x, self);
        }
        dispatch_dtype!(self, T => self.gradient_checkpoint_t::<T>(x, Arc::new(segment)))
    }

    fn gradient_checkpoint_t<T: Elem>(&mut self, x: &Node, segment: Segment) -> Result<Node> {
        let (first, kept) = (self.count(), T::state(self).records.len());
        T::state(self).shifts.clear();
        self.segment = SegmentPass::First;
        let out = segment(x, self);
        self.segment = SegmentPass::Outside;
        let (out, shifts) = (out?, std::mem::take(&mut T::state(self).shifts));
        if out.id < first {
            return Ok(out);
        }
        T::state(self).records.truncate(kept);
        if out.needs_grad {
            let record = CheckpointRecord { out: out.id, x: x.clone(), first, segment, shifts };
            T::state(self).records.push(Record::Checkpoint(record));
        }
        Ok(out)
    }

    /// Returns the shift of batch statistics, which avoids cancellation: the running mean or, in a
    /// recomputed segment, the one used in the forward pass.
    pub(crate) fn shift<T: Elem>(&mut self, mean: ParamId) -> Result<Vec<T>> {
        if self.segment == SegmentPass::Again
            && let Some(shift) = T::state(self).shifts.pop_front()
        {
            return Ok(shift);
        }
        let shift = with_values::<T, _>(self.params().get(mean).var(), <[T]>::to_vec)?;
        if self.segment == SegmentPass::First {
            T::state(self).shifts.push_back(shift.clone());
        }
        Ok(shift)
    }

    /// Recomputes a segment from its first node; returns its result and records.
    fn again<T: Elem>(
        &mut self,
        first: usize,
        shifts: VecDeque<Vec<T>>,
        segment: impl FnOnce(&mut Self) -> Result<Node>,
    ) -> Result<(Node, Vec<Record<T>>)> {
        let count = self.rewind(first);
        T::state(self).shifts = shifts;
        self.segment = SegmentPass::Again;
        let out = segment(self);
        self.segment = SegmentPass::Outside;
        self.rewind(count);
        Ok((out?, std::mem::take(&mut T::state(self).records)))
    }
}

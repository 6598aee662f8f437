//! Segments of a network whose inner values are computed again on the way back.
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

/// Where a pass stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Outside,
    /// Inside of a segment, on the way there.
    First,
    /// Inside of a segment that runs again, on the way back.
    Again,
}

/// What a segment computes of its input.
type Segment = Arc<dyn Fn(&Node, &mut Tape) -> Result<Node> + Send + Sync>;

/// A segment of which only the input is kept.
pub(crate) struct CheckpointRecord<T> {
    pub(crate) out: usize,
    x: Node,
    /// Number of its first inner node: inner nodes have the same numbers when they are made again, and
    /// so draw the same random numbers.
    first: usize,
    segment: Segment,
    /// What its batch norms summed around: their running means have moved since.
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
    /// Computes the segment again and goes back through it.
    pub(crate) fn backward(self, dy: Buf<T>, back: &mut Backward<T>, tape: &mut Tape) -> Result<()> {
        let (out, records) =
            tape.again::<T>(self.first, self.shifts, |tape| (self.segment)(&self.x, tape))?;
        if out.id != self.out {
            return Err(Error::usage("checkpoint", "the segment took another way when it ran again"));
        }
        back.add(self.out, dy);
        for record in records.into_iter().rev() {
            tape.go_back(record, back)?;
        }
        Ok(())
    }
}

impl Tape {
    /// Whether segments that a network runs by [`Tape::checkpoint`] keep no inner values. Off at first.
    pub fn set_checkpointing(&mut self, on: bool) {
        self.checkpointing = on;
    }

    /// Runs a segment of a network. With [`Tape::set_checkpointing`] its inner values are thrown away
    /// and computed again on the way back: the same values and gradients bit for bit, for one more pass
    /// through the segment. Running it again moves no running statistics and draws the same random
    /// numbers. `segment` reads nothing of this pass but its argument.
    pub fn checkpoint(
        &mut self,
        x: &Node,
        segment: impl Fn(&Node, &mut Tape) -> Result<Node> + Send + Sync + 'static,
    ) -> Result<Node> {
        let inside = self.segment != Pass::Outside; // where there is nothing left to save
        // candle's graph keeps what it keeps.
        if self.composed.is_some()
            || !self.checkpointing
            || !self.mode().records()
            || inside
            || self.is_tracing()
        {
            return segment(x, self);
        }
        dispatch_dtype!(self, T => self.checkpoint_t::<T>(x, Arc::new(segment)))
    }

    fn checkpoint_t<T: Elem>(&mut self, x: &Node, segment: Segment) -> Result<Node> {
        let (first, kept) = (self.count(), T::lane(self).records.len());
        T::lane(self).shifts.clear();
        self.segment = Pass::First;
        let out = segment(x, self);
        self.segment = Pass::Outside;
        let (out, shifts) = (out?, std::mem::take(&mut T::lane(self).shifts));
        if out.id < first {
            return Ok(out);
        }
        T::lane(self).records.truncate(kept);
        if out.needs_grad {
            let record = CheckpointRecord { out: out.id, x: x.clone(), first, segment, shifts };
            T::lane(self).records.push(Record::Checkpoint(record));
        }
        Ok(out)
    }

    /// What a batch norm sums around, to lose no digits: its running mean, in a segment that runs again
    /// that of the first time.
    pub(crate) fn shift<T: Elem>(&mut self, mean: ParamId) -> Result<Vec<T>> {
        if self.segment == Pass::Again
            && let Some(shift) = T::lane(self).shifts.pop_front()
        {
            return Ok(shift);
        }
        let shift = with_values::<T, _>(self.params().get(mean).var(), <[T]>::to_vec)?;
        if self.segment == Pass::First {
            T::lane(self).shifts.push_back(shift.clone());
        }
        Ok(shift)
    }

    /// Runs a segment again from its first node on: its result and its records.
    fn again<T: Elem>(
        &mut self,
        first: usize,
        shifts: VecDeque<Vec<T>>,
        segment: impl FnOnce(&mut Self) -> Result<Node>,
    ) -> Result<(Node, Vec<Record<T>>)> {
        let count = self.rewind(first);
        T::lane(self).shifts = shifts;
        self.segment = Pass::Again;
        let out = segment(self);
        self.segment = Pass::Outside;
        self.rewind(count);
        Ok((out?, std::mem::take(&mut T::lane(self).records)))
    }
}

//! Engine without values: the tape's entries are the result.

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};

use super::{Context, Engine, Expression, Source};
use crate::gradients::Gradients;
use crate::node::{Data, Feature, Node};
use crate::op::{Entry, Op, Value};
use crate::{Error, Result};

/// Records every operation and computes nothing.
#[derive(Debug)]
pub(crate) struct TraceEngine;

impl Engine for TraceEngine {
    fn begin(&mut self) {}

    fn records(&self, _: &Value) -> bool {
        true
    }

    fn traces(&self) -> bool {
        true
    }

    fn forward(&mut self, _: &Op, _: &[&Node], _: &Value, _: &mut Context) -> Result<Data> {
        Ok(Data::None)
    }

    fn import(&mut self, _: Source, _: &Value, _: &Context) -> Result<Data> {
        Ok(Data::None)
    }

    fn expression(
        &mut self,
        _: Expression,
        _: &[&Node],
        _: (usize, bool),
        _: &Context,
    ) -> Result<([usize; 4], bool, Data)> {
        Err(Error::usage("graph", "a candle expression cannot be traced"))
    }

    fn export(&self, _: &Node, _: &Context) -> Result<(Tensor, Option<Var>)> {
        Ok((Tensor::zeros(0, DType::F32, &Device::Cpu)?, None))
    }

    fn begin_backward(&mut self, _: &[Feature], _: &GradStore, _: &Context) -> Result<()> {
        Ok(())
    }

    fn backward(&mut self, _: &Entry, _: &mut Context) -> Result<()> {
        Ok(())
    }

    fn end_backward(&mut self, _: &mut Gradients) -> Result<()> {
        Ok(())
    }
}

//! A candle expression as one operation of the tape.

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};

use super::state::{Elem, KernelsEngine, Saved, tensor, values};
use crate::element::with_values;
use crate::engine::{Context, Expression, shape_of};
use crate::node::{Data, Node};
use crate::op::Value;
use crate::{Error, Result};

impl<T: Elem> KernelsEngine<T> {
    pub(super) fn run_expression(
        &mut self,
        f: Expression,
        inputs: &[&Node],
        output: (usize, bool),
        context: &Context,
    ) -> Result<([usize; 4], bool, Data)> {
        let (mut leaves, mut args) = (Vec::new(), Vec::new());
        for x in inputs {
            let [b, h, w, c] = x.value.shape;
            let shape = if x.value.flat { vec![b, c] } else { vec![b, h, w, c] };
            let stored = Tensor::from_slice(values::<T>("graph", x)?, shape, &Device::Cpu)?;
            let stored = if context.mode.records() && x.value.needs_grad {
                let leaf = Var::from_tensor(&stored)?;
                let attached = leaf.as_tensor().clone();
                leaves.push((x.value.index, leaf));
                attached
            } else {
                stored
            };
            args.push(if x.value.flat { stored } else { stored.permute((0, 3, 1, 2))? });
        }
        let result = f(&args)?;
        let (shape, flat) = shape_of("graph", result.dims())?;
        if result.dtype() != T::TYPE {
            return Err(Error::shape("graph", format!("a result of {:?}", T::TYPE), result.dtype()));
        }
        let inside = if flat { result.clone() } else { result.permute((0, 2, 3, 1))? };
        let mut out = self.pool().take(inside.elem_count());
        with_values::<T, _>(&inside, |v| out.copy_from_slice(v))?;
        let (index, needs_grad) = output;
        let value = Value { index, shape, flat, needs_grad };
        self.save(&value, Saved::Expression(result, leaves));
        Ok((shape, flat, T::wrap(Arc::new(out))))
    }

    pub(super) fn expression_backward(
        &mut self,
        result: &Tensor,
        leaves: &[(usize, Var)],
        output: &Value,
        dy: &[T],
    ) -> Result<()> {
        let store = result.mul(&tensor(output, dy)?)?.sum_all()?.backward()?;
        for (index, leaf) in leaves {
            if let Some(g) = store.get(leaf) {
                let mut buf = self.pool().take(g.elem_count());
                with_values::<T, _>(g, |g| buf.copy_from_slice(g))?;
                self.add(*index, buf);
            }
        }
        self.back.stores.push(store);
        Ok(())
    }
}

//! Window attention on the CPU kernels.

use std::sync::Arc;

use super::state::{AttentionSaved, Elem, KernelsEngine};
use crate::Result;
use crate::buffers::{Buf, Pool};
use crate::element::with_values;
use crate::engine::Context;
use crate::kernels::attention::{Attention as Kernel, Windows, bias_len, spread_bias};
use crate::op::{Attention, Value};

impl<T: Elem> AttentionSaved<T> {
    fn kernel<'a>(&'a self, op: &Attention, output: &Value, scratch: &'a Arc<Pool<T>>) -> Kernel<'a, T> {
        let Self { windows, qkv, bias, outside } = self;
        let [images, _, _, channels] = output.shape;
        let (heads, width) = (op.heads, channels / op.heads);
        Kernel { windows, images, heads, width, qkv, outside, bias, scratch }
    }
}

impl<T: Elem> KernelsEngine<T> {
    pub(super) fn attention(
        &mut self,
        op: &Attention,
        qkv: Arc<Buf<T>>,
        output: &Value,
        context: &Context,
    ) -> Result<(Buf<T>, AttentionSaved<T>)> {
        let (params, pool) = (&context.params, self.pool());
        let windows = Windows::new(output.size(), op.window, op.shift);
        let mut bias = pool.take(bias_len(op.heads, windows.tokens()));
        with_values::<T, _>(params.get(op.table).var(), |table| {
            spread_bias(&windows, table, op.heads, &mut bias);
        })?;
        let mut outside = pool.take(3 * output.shape[3]);
        outside.fill(T::ZERO);
        if let Some(id) = op.bias {
            with_values::<T, _>(params.get(id).var(), |b| outside.copy_from_slice(b))?;
        }
        let saved = AttentionSaved { windows, qkv, bias, outside };
        let mut out = pool.take(output.count());
        saved.kernel(op, output, pool).forward(&mut out);
        Ok((out, saved))
    }

    pub(super) fn attention_backward(
        &mut self,
        op: &Attention,
        saved: &AttentionSaved<T>,
        (input, output): (&Value, &Value),
        dy: &[T],
        context: &Context,
    ) {
        let pool = Arc::clone(self.pool());
        let kernel = saved.kernel(op, output, &pool);
        let mut d_qkv = pool.take(saved.qkv.len());
        let mut sums = pool.take(kernel.sums_len());
        kernel.backward(dy, &mut d_qkv, &mut sums);
        let table = context.params.get(op.table).count();
        let (mut d_table, mut d_outside) = (pool.take(table), pool.take(3 * output.shape[3]));
        d_table.fill(T::ZERO);
        d_outside.fill(T::ZERO);
        kernel.gather(&sums, &mut d_table, &mut d_outside);
        if context.trains(op.table) {
            self.param(op.table, d_table);
        }
        if let Some(id) = op.bias.filter(|id| context.trains(*id)) {
            self.param(id, d_outside);
        }
        if input.needs_grad {
            self.add(input.index, d_qkv);
        }
    }
}

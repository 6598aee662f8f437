//! A candle expression as one node of the tape.

use candle_core::{Device, Tensor, Var};

use crate::buffers::Buf;
use crate::element::with_values;
use crate::layers::Record;
use crate::tape::{Backward, Elem, Node, Tape};
use crate::{Error, Result};

/// The inputs as candle leaves, and the result that depends on them.
#[derive(Debug)]
pub(crate) struct GraphRecord {
    pub(crate) out: usize,
    inputs: Vec<(usize, Var)>,
    result: Tensor,
}

/// Permutes `[N, H, W, C]` to `[N, C, H, W]`; a vector is unchanged.
fn outside(t: &Tensor, flat: bool) -> candle_core::Result<Tensor> {
    if flat { Ok(t.clone()) } else { t.permute((0, 3, 1, 2)) }
}

pub(crate) fn forward<T: Elem>(
    tape: &mut Tape,
    inputs: &[&Node],
    f: impl FnOnce(&[Tensor]) -> candle_core::Result<Tensor>,
) -> Result<Node> {
    let records = tape.mode().records();
    let (mut leaves, mut args) = (Vec::new(), Vec::new());
    for x in inputs {
        let [b, h, w, c] = x.shape;
        let shape = if x.flat { vec![b, c] } else { vec![b, h, w, c] };
        let values = Tensor::from_slice(&tape.values::<T>("graph", x)?, shape, &Device::Cpu)?;
        if records && x.needs_grad {
            let leaf = Var::from_tensor(&values)?;
            args.push(outside(leaf.as_tensor(), x.flat)?);
            leaves.push((x.id, leaf));
        } else {
            args.push(outside(&values, x.flat)?);
        }
    }
    let result = f(&args)?;
    let (shape, flat) = match *result.dims() {
        [b, c] => ([b, 1, 1, c], true),
        [b, c, h, w] => ([b, h, w, c], false),
        _ => return Err(Error::shape("graph", "a result [B, C, H, W] or [B, D]", result.dims())),
    };
    if result.dtype() != T::TYPE {
        return Err(Error::shape("graph", format!("a result of {:?}", T::TYPE), result.dtype()));
    }
    let inside = if flat { result.clone() } else { result.permute((0, 2, 3, 1))? };
    let mut out = T::state(tape).pool.take(inside.elem_count());
    with_values::<T, _>(&inside, |v| out.copy_from_slice(v))?;
    let needs_grad = records && (tape.mode().trains() || !leaves.is_empty());
    let node = tape.node(shape, flat, needs_grad, out);
    if needs_grad {
        let record = GraphRecord { out: node.id, inputs: leaves, result };
        T::state(tape).records.push(Record::Graph(record));
    }
    Ok(node)
}

/// Wraps external values as a node without gradients.
pub(crate) fn opaque_values<T: Elem>(
    tape: &mut Tape,
    shape: [usize; 4],
    flat: bool,
    values: &Tensor,
) -> Result<Node> {
    let inside = if flat { values.clone() } else { values.permute((0, 2, 3, 1))? };
    let mut out = T::state(tape).pool.take(inside.elem_count());
    with_values::<T, _>(&inside.to_dtype(T::TYPE)?, |v| out.copy_from_slice(v))?;
    Ok(tape.node(shape, flat, false, out))
}

impl GraphRecord {
    pub(crate) fn backward<T: Elem>(self, dy: &Buf<T>, back: &mut Backward<T>) -> Result<()> {
        let dims = self.result.dims();
        let dy = match *dims {
            [b, c, h, w] => Tensor::from_slice(dy, (b, h, w, c), &Device::Cpu)?.permute((0, 3, 1, 2))?,
            _ => Tensor::from_slice(dy, dims, &Device::Cpu)?,
        };
        let store = self.result.mul(&dy)?.sum_all()?.backward()?;
        for (id, leaf) in &self.inputs {
            if let Some(g) = store.get(leaf) {
                let mut buf = back.pool.take(g.elem_count());
                with_values::<T, _>(g, |g| buf.copy_from_slice(g))?;
                back.add(*id, buf);
            }
        }
        back.tensors.push(store);
        Ok(())
    }
}

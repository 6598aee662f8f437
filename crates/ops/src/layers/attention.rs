//! Window attention layer.

use std::sync::Arc;

use candle_core::Tensor;

use crate::buffers::Buf;
use crate::element::with_values;
use crate::graph::{self, WindowTables};
use crate::kernels::attention::{Attention, Windows, bias_len, spread_bias};
use crate::layers::Record;
use crate::layers::linear::Linear;
use crate::params::{Init, ParamBuilder};
use crate::tape::{Backward, Elem, Node, Tape, dispatch_dtype};
use crate::trace::Op;
use crate::{Error, ParamId, Result};

/// Multi-head self-attention inside windows with relative position bias: `[B, C, H, W]` to `[B, C, H, W]`
/// (Liu et al., "Swin Transformer", ICCV 2021, DOI 10.1109/ICCV48922.2021.00986, section 3.2).
///
/// The map is cyclically shifted by `shift` rows and columns, zero-padded to whole windows, attended
/// window by window, and shifted back. Tokens that the shift wraps around from opposite edges are masked
/// from each other. Queries are scaled by `1 / sqrt(C / heads)`.
#[derive(Debug, Clone)]
pub struct WindowAttention {
    channels: usize,
    heads: usize,
    window: [usize; 2],
    shift: [usize; 2],
    table: ParamId,
    qkv: Linear,
    proj: Linear,
}

impl WindowAttention {
    /// Creates `relative_position_bias_table` `[(2 h - 1) (2 w - 1), heads]`, `qkv` (three times as many
    /// outputs as channels) and `proj` under `p`; weights from `init`, biases zero.
    pub fn new(
        channels: usize,
        heads: usize,
        window: [usize; 2],
        shift: [usize; 2],
        init: Init,
        p: &ParamBuilder,
    ) -> Result<Self> {
        let fits = heads > 0 && channels.is_multiple_of(heads) && window[0] * window[1] > 0;
        if !fits || shift[0] >= window[0] || shift[1] >= window[1] {
            let expected = "channels divisible by the heads, a shift smaller than the window";
            return Err(Error::shape("window attention", expected, (channels, heads, window, shift)));
        }
        let rows = (2 * window[0] - 1) * (2 * window[1] - 1);
        let table = p.weight("relative_position_bias_table", &[rows, heads], init)?;
        let zero = Some(Init::Constant(0.0));
        let qkv = Linear::new(channels, 3 * channels, "qkv", init, zero, p)?;
        let proj = Linear::new(channels, channels, "proj", init, zero, p)?;
        Ok(Self { channels, heads, window, shift, table, qkv, proj })
    }

    /// Runs the layer.
    pub fn forward(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        let y = self.attend(x, tape)?;
        self.proj.forward(&y, tape)
    }

    /// Runs the layer and adds the shortcut.
    pub fn forward_add(&self, x: &Node, shortcut: &Node, tape: &mut Tape) -> Result<Node> {
        let y = self.attend(x, tape)?;
        self.proj.forward_add(&y, shortcut, tape)
    }

    /// Returns the multiply-accumulates for one map: of the linear layers, and of the products between
    /// queries, keys and values. Padding is included.
    pub fn macs(&self, (height, width): (usize, usize)) -> (u64, u64) {
        let [h, w] = self.window;
        let windows = height.div_ceil(h) * width.div_ceil(w);
        let tokens = (windows * h * w) as u64;
        let linear = tokens * (self.qkv.macs() + self.proj.macs());
        (linear, tokens * (2 * h * w * self.channels) as u64)
    }

    fn attend(&self, x: &Node, tape: &mut Tape) -> Result<Node> {
        let qkv = self.qkv.forward(x, tape)?;
        let [images, h, w, _] = qkv.shape;
        let shape = [images, h, w, self.channels];
        if let Some(node) = tape.traced(|| Op::WindowAttention, &[&qkv], shape, false) {
            return Ok(node);
        }
        if tape.graph_state.is_some() {
            return self.graph_op(&qkv, tape);
        }
        dispatch_dtype!(tape, T => self.run::<T>(&qkv, tape))
    }

    /// Graph engine.
    fn graph_op(&self, qkv: &Node, tape: &mut Tape) -> Result<Node> {
        let map = [qkv.shape[1], qkv.shape[2]];
        let key = [map, self.window, self.shift];
        let table = tape.weight(self.table);
        let outside = match self.qkv.bias() {
            Some(id) => tape.weight(id),
            None => Tensor::zeros(3 * self.channels, tape.dtype(), tape.params().device())?,
        };
        let known = tape.graph_state.as_ref().and_then(|kept| kept.windows.get(&key)).cloned();
        let tables = match known {
            Some(tables) => tables,
            None => {
                let windows = Windows::new(map, self.window, self.shift);
                let tables = WindowTables::new(&windows, tape.dtype(), tape.params().device())?;
                if let Some(kept) = &mut tape.graph_state {
                    kept.windows.insert(key, tables.clone());
                }
                tables
            }
        };
        let x = tape.tensor("window attention", qkv)?;
        let y = graph::window_attention(&x, &outside, &table, self.heads, &tables)?;
        tape.graph_node(y)
    }

    fn run<T: Elem>(&self, qkv: &Node, tape: &mut Tape) -> Result<Node> {
        let [images, h, w, _] = qkv.shape;
        let values = tape.values::<T>("window attention", qkv)?;
        let windows = Windows::new([h, w], self.window, self.shift);
        let pool = Arc::clone(&T::state(tape).pool);
        let inputs = self.inputs::<T>(&windows, tape)?;
        let mut out = pool.take(images * h * w * self.channels);
        self.kernel(images, &windows, &values, &inputs, &pool).forward(&mut out);
        let needs_grad = tape.mode().records() && (qkv.needs_grad || tape.trains(self.table));
        let node = tape.node([images, h, w, self.channels], false, needs_grad, out);
        if needs_grad {
            let layer = Box::new(self.clone());
            let qkv = (qkv.id, qkv.needs_grad);
            let record = AttentionRecord { out: node.id, layer, qkv, images, windows, values, inputs };
            T::state(tape).records.push(Record::Attention(record));
        }
        Ok(node)
    }

    /// Returns the expanded relative position bias and the projection of a zero pixel.
    fn inputs<T: Elem>(&self, windows: &Windows, tape: &mut Tape) -> Result<Inputs<T>> {
        let params = tape.params().clone();
        let pool = Arc::clone(&T::state(tape).pool);
        let mut bias = pool.take(bias_len(self.heads, windows.tokens()));
        with_values::<T, _>(params.get(self.table).var(), |table| {
            spread_bias(windows, table, self.heads, &mut bias);
        })?;
        let mut outside = pool.take(3 * self.channels);
        outside.fill(T::ZERO);
        if let Some(id) = self.qkv.bias() {
            with_values::<T, _>(params.get(id).var(), |b| outside.copy_from_slice(b))?;
        }
        Ok(Inputs { bias, outside })
    }

    fn kernel<'a, T: Elem>(
        &self,
        images: usize,
        windows: &'a Windows,
        qkv: &'a [T],
        inputs: &'a Inputs<T>,
        scratch: &'a Arc<crate::buffers::Pool<T>>,
    ) -> Attention<'a, T> {
        let (heads, width) = (self.heads, self.channels / self.heads);
        let Inputs { bias, outside } = inputs;
        Attention { windows, images, heads, width, qkv, outside, bias, scratch }
    }
}

/// Kernel inputs in addition to the map.
#[derive(Debug)]
struct Inputs<T> {
    bias: Buf<T>,
    outside: Buf<T>,
}

#[derive(Debug)]
pub(crate) struct AttentionRecord<T> {
    pub(crate) out: usize,
    layer: Box<WindowAttention>,
    qkv: (usize, bool),
    images: usize,
    windows: Windows,
    values: Arc<Buf<T>>,
    inputs: Inputs<T>,
}

impl<T: Elem> AttentionRecord<T> {
    pub(crate) fn backward(self, dy: &Buf<T>, back: &mut Backward<T>, tape: &mut Tape) -> Result<()> {
        let layer = &self.layer;
        let kernel = layer.kernel(self.images, &self.windows, &self.values, &self.inputs, &back.pool);
        let mut d_qkv = back.pool.take(self.values.len());
        let mut sums = back.pool.take(kernel.sums_len());
        kernel.backward(dy, &mut d_qkv, &mut sums);
        let table = tape.params().get(layer.table).count();
        let (mut d_table, mut d_outside) = (back.pool.take(table), back.pool.take(3 * layer.channels));
        d_table.fill(T::ZERO);
        d_outside.fill(T::ZERO);
        kernel.gather(&sums, &mut d_table, &mut d_outside);
        if tape.trains(layer.table) {
            back.param(layer.table, d_table);
        }
        if let Some(id) = layer.qkv.bias().filter(|id| tape.trains(*id)) {
            back.param(id, d_outside);
        }
        if self.qkv.1 {
            back.add(self.qkv.0, d_qkv);
        }
        Ok(())
    }
}

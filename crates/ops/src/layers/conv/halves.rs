//! A block of a frozen network in bf16.

use std::sync::Arc;

use super::ConvBnAct;
use crate::buffers::Buf;
use crate::kernels::bf16::{self, Convolution, Weights};
use crate::kernels::geometry::{ConvGeo, pad_images};
use crate::tape::{Data, Elem, Node, Tape};
use crate::{Error, Result};

impl ConvBnAct {
    /// The block with batch norm folded in; what goes in is rounded to bf16 if it is not yet.
    pub(super) fn run_halves(
        &self,
        x: &Node,
        shortcut: Option<&Node>,
        shape: [usize; 4],
        geo: &ConvGeo,
        tape: &mut Tape,
    ) -> Result<Node> {
        let started = tape.started();
        let images = shape[0];
        let source = halves(x, tape)?;
        let shortcut = shortcut.map(|s| halves(s, tape)).transpose()?;
        let padded = geo.padded.map(|size| {
            let mut copy = tape.halves.take(images * geo.source_len());
            pad_images(&source, geo.input, geo.spec.inputs, geo.before, size, &mut copy);
            copy
        });
        let unit = bf16::unit().ok_or_else(|| Error::usage("bf16", "this machine cannot multiply in it"))?;
        let weights = self.tiles(tape)?;
        let mut out = tape.halves.borrow(shape.iter().product());
        let mut scratch = tape.halves.take(unit.scratch_len(&weights));
        Convolution {
            images,
            rows: &geo.forward,
            source: padded.as_deref().unwrap_or(&source),
            source_len: geo.source_len(),
            weights: &weights,
            shortcut: shortcut.as_ref().map(|s| &s[..]),
            act: self.act,
            target: &mut out,
            scratch: &mut scratch,
        }
        .run(unit);
        tape.ended(started, || geo.work("bf16"), geo.macs(images));
        Ok(tape.node_of(shape, false, false, Data::Bf16(Arc::new(out))))
    }

    /// Folded weights, made once: a frozen network does not change.
    fn tiles(&self, tape: &mut Tape) -> Result<Arc<Weights>> {
        if let Some(found) = tape.tiles.get(&self.weight) {
            return Ok(Arc::clone(found));
        }
        self.has_values(tape)?;
        let (weight, bias) = self.fold(f32::lane(tape).pool.borrow(self.panels.stored()), tape)?;
        let taps = self.spec.kernel * self.spec.kernel;
        let shape = [self.spec.outputs, self.spec.inputs, taps];
        let weights = Arc::new(Weights::new(&self.panels.unpack(&weight), bias, shape, &tape.halves));
        tape.tiles.insert(self.weight, Arc::clone(&weights));
        self.give_up(tape)?;
        Ok(weights)
    }
}

/// The node in bf16: what a convolution in f32 leaves where the network is in bf16.
pub(super) fn rounded(x: &Node, tape: &mut Tape) -> Result<Node> {
    let values = halves(x, tape)?;
    Ok(tape.node_of(x.shape, false, false, Data::Bf16(values)))
}

/// The values of a node in bf16.
fn halves(x: &Node, tape: &mut Tape) -> Result<Arc<Buf<u16>>> {
    if let Data::Bf16(values) = &x.data {
        return Ok(Arc::clone(values));
    }
    let values = tape.values::<f32>("conv", x)?;
    let mut narrow = tape.halves.borrow(values.len());
    bf16::narrow_all(&values, &mut narrow);
    Ok(Arc::new(narrow))
}

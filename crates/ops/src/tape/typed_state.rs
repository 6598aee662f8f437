//! State of the tape that depends on the element type.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use super::{Data, Tape};
use crate::ParamId;
use crate::buffers::{Buf, Pool};
use crate::element::Float;
use crate::gradients::Grad;
use crate::layers::Record;

/// Weights with batch norm folded in, at one version of the parameters.
#[derive(Debug)]
pub(crate) struct Folded<T> {
    pub(crate) version: u64,
    pub(crate) weight: Buf<T>,
    /// The weight in Winograd's domain, computed on first use.
    pub(crate) points: OnceLock<Buf<T>>,
    pub(crate) bias: Vec<T>,
}

/// State of the tape that depends on the element type.
#[derive(Debug)]
pub(crate) struct TypedState<T> {
    pub(crate) pool: Arc<Pool<T>>,
    pub(crate) bytes: Arc<Pool<u8>>,
    pub(crate) records: Vec<Record<T>>,
    pub(crate) folded: HashMap<ParamId, Arc<Folded<T>>>,
    pub(crate) zeros: Arc<Vec<T>>,
    /// Shifts of the batch statistics of a checkpointed segment.
    pub(crate) shifts: VecDeque<Vec<T>>,
}

impl<T: Default + Clone> Default for TypedState<T> {
    fn default() -> Self {
        Self {
            pool: Arc::default(),
            bytes: Arc::default(),
            records: Vec::new(),
            folded: HashMap::new(),
            zeros: Arc::new(vec![T::default(); 4096]),
            shifts: VecDeque::new(),
        }
    }
}

impl<T: Float> TypedState<T> {
    /// Returns at least `len` zeros.
    pub(crate) fn zeros(&mut self, len: usize) -> Arc<Vec<T>> {
        if self.zeros.len() < len {
            self.zeros = Arc::new(vec![T::ZERO; len]);
        }
        Arc::clone(&self.zeros)
    }
}

/// Element types of the CPU kernels.
pub(crate) trait Elem: Float {
    fn state(tape: &mut Tape) -> &mut TypedState<Self>;
    fn data(data: &Data) -> Option<&Arc<Buf<Self>>>;
    fn wrap(values: Arc<Buf<Self>>) -> Data;
    fn grad(values: Buf<Self>) -> Grad;
}

macro_rules! elem {
    ($type:ty, $field:ident, $variant:ident) => {
        impl Elem for $type {
            fn state(tape: &mut Tape) -> &mut TypedState<Self> {
                &mut tape.$field
            }
            fn data(data: &Data) -> Option<&Arc<Buf<Self>>> {
                match data {
                    Data::$variant(values) => Some(values),
                    _ => None,
                }
            }
            fn wrap(values: Arc<Buf<Self>>) -> Data {
                Data::$variant(values)
            }
            fn grad(values: Buf<Self>) -> Grad {
                Grad::$variant(values)
            }
        }
    };
}
elem!(f32, f32, F32);
elem!(f64, f64, F64);

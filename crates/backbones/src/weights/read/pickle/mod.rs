//! Unpickler for the part of Python's pickle protocols 2 to 5 that PyTorch's files use.
//!
//! Nothing is executed: a few known functions build descriptions of tensors, and a call of any other
//! yields an opaque [`Object`]. Values are in one arena and refer to each other by index, so that deep or
//! repeated nesting costs no more memory or stack than the bytes that describe it.

mod calls;
mod machine;

use std::io::Read;

use self::calls::Global;
use self::machine::Unpickler;

/// Index of a value in the arena.
pub(super) type Id = usize;

/// Element types of storages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F64,
    F32,
    F16,
    BF16,
    /// Integers and others that are never read, by size of an element in bytes.
    Other(usize),
}

impl Element {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Other(bytes) => bytes,
        }
    }
}

/// Reference to a tensor in a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorRef {
    /// Key of the storage.
    pub(super) storage: String,
    pub(super) element: Element,
    /// Length of the storage in elements.
    pub(super) length: u64,
    /// Offset in the storage in elements.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// A value of the arena.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A float, boolean, None or bytes, which is never read.
    Ignored,
    Int(i64),
    String(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Storage {
        key: String,
        element: Element,
        length: u64,
    },
    Tensor(Box<TensorRef>),
    Object(Box<Object>),
    /// A function or class.
    Global(Box<Global>),
}

/// An instance of a class that is not known.
#[derive(Debug, Clone)]
pub(super) struct Object {
    /// The class, or the function that returned it.
    class: Id,
    /// Attributes.
    pub(super) state: Option<Id>,
    /// Items, of a subclass of `dict`.
    pub(super) items: Vec<(Id, Id)>,
}

/// Result of unpickling one stream.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    pub(super) root: Id,
    /// Storages in the order of their persistent ids.
    pub(super) storages: Vec<(String, Element, u64)>,
}

type Result<T> = std::result::Result<T, String>;

impl Pickle {
    /// Unpickles one stream, up to its STOP opcode.
    pub(super) fn read(reader: &mut impl Read) -> Result<Self> {
        Unpickler::new(reader).load()
    }

    /// Returns a value.
    pub(super) fn value(&self, id: Id) -> &Value {
        &self.values[id]
    }

    /// Returns `module.name` of the class of an object.
    pub(super) fn class(&self, object: &Object) -> &str {
        match &self.values[object.class] {
            Value::Global(global) => global.name(),
            _ => "object",
        }
    }

    /// Returns a string.
    pub(super) fn string(&self, id: Id) -> Option<&str> {
        match &self.values[id] {
            Value::String(string) => Some(string),
            _ => None,
        }
    }

    /// Returns the strings of the root, a list or tuple.
    pub(super) fn strings(&self) -> Option<Vec<&str>> {
        match &self.values[self.root] {
            Value::List(all) | Value::Tuple(all) => all.iter().map(|id| self.string(*id)).collect(),
            _ => None,
        }
    }
}

/// Index of the value [`Value::Ignored`].
const IGNORED: Id = 0;

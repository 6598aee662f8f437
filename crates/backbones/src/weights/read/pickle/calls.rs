//! Functions and classes of a pickle, and what their calls describe.

use std::io::Read;

use super::machine::Unpickler;
use super::{Element, IGNORED, Id, Object, Result, TensorRef, Value};

/// Maximum length of a storage's key in bytes.
const MAX_KEY: usize = 64;

/// A function or class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::weights::read) enum Global {
    OrderedDict,
    /// `_rebuild_tensor_v2(storage, offset, shape, strides, ...)`
    RebuildTensor,
    /// `_rebuild_parameter(tensor, ...)`
    RebuildParameter,
    /// `_rebuild_from_type_v2(function, type, arguments, state)`
    RebuildFromType,
    /// `_reconstructor(class, ...)`
    Reconstructor,
    Storage(Element),
    /// Any other, as `module.name`.
    Other(String),
}

impl Global {
    /// Returns the function or class `module.name`.
    pub(super) fn new(module: &str, name: &str) -> Self {
        match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                Global::RebuildParameter
            }
            ("torch._tensor", "_rebuild_from_type_v2") => Global::RebuildFromType,
            ("copyreg" | "copy_reg", "_reconstructor") => Global::Reconstructor,
            ("torch" | "torch.cuda", "DoubleStorage") => Global::Storage(Element::F64),
            ("torch" | "torch.cuda", "FloatStorage") => Global::Storage(Element::F32),
            ("torch" | "torch.cuda", "HalfStorage") => Global::Storage(Element::F16),
            ("torch" | "torch.cuda", "BFloat16Storage") => Global::Storage(Element::BF16),
            ("torch" | "torch.cuda", "ComplexDoubleStorage") => Global::Storage(Element::Other(16)),
            ("torch" | "torch.cuda", "LongStorage" | "ComplexFloatStorage") => {
                Global::Storage(Element::Other(8))
            }
            ("torch" | "torch.cuda", "IntStorage" | "QInt32Storage") => Global::Storage(Element::Other(4)),
            ("torch" | "torch.cuda", "ShortStorage") => Global::Storage(Element::Other(2)),
            (
                "torch" | "torch.cuda",
                "CharStorage" | "ByteStorage" | "BoolStorage" | "QInt8Storage" | "QUInt8Storage",
            ) => Global::Storage(Element::Other(1)),
            _ => Global::Other(format!("{module}.{name}")),
        }
    }

    /// Returns `module.name`; of a known function its purpose.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Other(name) => name,
            Self::RebuildTensor => "tensor of an unsupported type",
            _ => "object",
        }
    }
}

impl<R: Read> Unpickler<'_, R> {
    pub(super) fn items(&self, id: Id) -> Option<&[Id]> {
        match &self.values[id] {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    pub(super) fn global(&self, id: Id) -> Option<&Global> {
        match &self.values[id] {
            Value::Global(global) => Some(global),
            _ => None,
        }
    }

    /// Loads the persistent id `("storage", type, key, device, length)`. Files of whole models before
    /// PyTorch 1.6 also have `("module", class, file, source)`, which stands for the class.
    pub(super) fn persistent_load(&mut self, id: Id) -> Result<Id> {
        let wrong = || "invalid description of a storage".to_string();
        let string = |id: Id| match &self.values[id] {
            Value::String(string) => Some(string.clone()),
            _ => None,
        };
        let items = self.items(id).ok_or_else(wrong)?;
        if let [kind, class, ..] = items
            && string(*kind).as_deref() == Some("module")
        {
            return Ok(*class);
        }
        let [kind, element, key, _, length, view @ ..] = items else { return Err(wrong()) };
        if string(*kind).as_deref() != Some("storage") {
            return Err(wrong());
        }
        if view.iter().any(|id| *id != IGNORED) {
            return Err("unsupported view of a storage".into());
        }
        let key = string(*key).filter(|key| key.len() <= MAX_KEY);
        let (key, Value::Int(length)) = (key.ok_or_else(wrong)?, &self.values[*length]) else {
            return Err(wrong());
        };
        let length = u64::try_from(*length).map_err(|_| wrong())?;
        let element = match self.global(*element) {
            Some(Global::Storage(element)) => *element,
            // An element type that is never read.
            Some(_) => return Ok(IGNORED),
            None => return Err(wrong()),
        };
        self.storages.push((key.clone(), element, length));
        self.add(Value::Storage { key, element, length })
    }

    /// Returns what a call of a function or class describes.
    pub(super) fn call(&mut self, function: Id, arguments: Id) -> Result<Id> {
        let items = self.items(arguments).ok_or("call without an argument tuple")?;
        let first = items.first().copied();
        match self.global(function) {
            Some(Global::OrderedDict) => {
                // Python 2 pickles a list of pairs.
                let pairs = first.and_then(|id| self.items(id)).unwrap_or_default();
                let pairs = pairs.iter().map(|id| match self.items(*id) {
                    Some([key, value]) => Ok((*key, *value)),
                    _ => Err("OrderedDict of values that are not pairs".to_string()),
                });
                let pairs = pairs.collect::<Result<Vec<_>>>()?;
                self.add(Value::Dict(pairs))
            }
            Some(Global::RebuildTensor) => match first.map(|id| &self.values[id]) {
                // A storage of an element type that is never read.
                Some(Value::Ignored) => self.object(function),
                _ => {
                    let tensor = self.rebuild_tensor(items)?;
                    self.add(Value::Tensor(Box::new(tensor)))
                }
            },
            Some(Global::RebuildParameter) => first.ok_or_else(|| "parameter without a tensor".into()),
            Some(Global::RebuildFromType) => match *items {
                // The function is not this one again, so that calls do not nest.
                [function, _, arguments, ..] if self.global(function) != Some(&Global::RebuildFromType) => {
                    self.call(function, arguments)
                }
                _ => Err("invalid description of a tensor".into()),
            },
            Some(Global::Reconstructor) => self.object(first.unwrap_or(IGNORED)),
            // Any other function or class, or an object that is called
            _ => self.object(function),
        }
    }

    fn object(&mut self, class: Id) -> Result<Id> {
        self.add(Value::Object(Box::new(Object { class, state: None, items: Vec::new() })))
    }

    /// Builds a tensor from the arguments `(storage, offset, shape, strides, ...)`.
    fn rebuild_tensor(&self, arguments: &[Id]) -> Result<TensorRef> {
        let wrong = || "invalid description of a tensor".to_string();
        let [storage, offset, shape, strides, ..] = arguments else { return Err(wrong()) };
        let sizes = |id: &Id| -> Option<Vec<usize>> {
            let items = self.items(*id).filter(|items| items.len() <= 8)?;
            let size = |id: &Id| match &self.values[*id] {
                Value::Int(size) => usize::try_from(*size).ok(),
                _ => None,
            };
            items.iter().map(size).collect()
        };
        let (Value::Storage { key, element, length }, Value::Int(offset)) =
            (&self.values[*storage], &self.values[*offset])
        else {
            return Err(wrong());
        };
        let (Some(shape), Some(strides), Ok(offset)) = (sizes(shape), sizes(strides), u64::try_from(*offset))
        else {
            return Err(wrong());
        };
        if shape.len() != strides.len() {
            return Err(wrong());
        }
        Ok(TensorRef { storage: key.clone(), element: *element, length: *length, offset, shape, strides })
    }
}

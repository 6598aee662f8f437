//! Unpickler for the subset of Python's pickle protocol 2 in PyTorch's weights files.
//!
//! Nothing is executed: a few allowed globals build descriptions of tensors, and any other global is an
//! error, as with PyTorch's `weights_only`. Values are in one arena and refer to each other by index, so
//! that deep or repeated nesting costs no more memory or stack than the bytes that describe it.

use std::io::Read;

/// Maximum size of a pickle in bytes. A thousand tensors take about 0.1 MiB.
const MAX_BYTES: usize = 4 << 20;
/// Maximum number of values, and of stack entries and marks. A thousand tensors take about 20 000.
const MAX_VALUES: usize = 1 << 17;

/// Maximum length of a string in bytes.
const MAX_STRING: usize = 4096;
/// Maximum length of a global's module or name in bytes.
const MAX_LINE: usize = 200;

/// Index of a value in the arena.
type Id = usize;

/// An allowed global.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Element),
}

/// Element types of storages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F64,
    F32,
    F16,
    BF16,
    /// Integers, never read, by size of an element in bytes.
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

fn allowed_global(module: &str, name: &str) -> Option<Global> {
    use Global::{OrderedDict, RebuildParameter, RebuildTensor, Storage};
    Some(match (module, name) {
        ("collections", "OrderedDict") => OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => RebuildParameter,
        ("torch" | "torch.cuda", storage) => Storage(match storage {
            "DoubleStorage" => Element::F64,
            "FloatStorage" => Element::F32,
            "HalfStorage" => Element::F16,
            "BFloat16Storage" => Element::BF16,
            "LongStorage" => Element::Other(8),
            "IntStorage" => Element::Other(4),
            "ShortStorage" => Element::Other(2),
            "CharStorage" | "ByteStorage" | "BoolStorage" => Element::Other(1),
            _ => return None,
        }),
        _ => return None,
    })
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

#[derive(Debug, Clone)]
enum Value {
    /// A float, boolean or None, which is never read.
    Ignored,
    Int(i64),
    String(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage {
        key: String,
        element: Element,
        length: u64,
    },
    Tensor(Box<TensorRef>),
}

/// Result of unpickling one stream.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    root: Id,
    /// Storages in the order of their persistent ids.
    pub(super) storages: Vec<(String, Element, u64)>,
}

type Result<T> = std::result::Result<T, String>;

impl Pickle {
    /// Unpickles one stream, up to its STOP opcode.
    pub(super) fn read(reader: &mut impl Read) -> Result<Self> {
        let unpickler = Unpickler {
            reader,
            bytes_read: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            storages: Vec::new(),
        };
        unpickler.load()
    }

    /// Returns the strings of a list or tuple.
    pub(super) fn strings(&self) -> Option<Vec<&str>> {
        match &self.values[self.root] {
            Value::List(all) | Value::Tuple(all) => all.iter().map(|id| self.string(*id)).collect(),
            _ => None,
        }
    }

    fn string(&self, id: Id) -> Option<&str> {
        match &self.values[id] {
            Value::String(string) => Some(string),
            _ => None,
        }
    }

    /// Returns the tensors of a state dict by name. A dictionary with a state dict under one of the usual
    /// keys of training scripts is unwrapped.
    pub(super) fn tensors(self) -> Result<Vec<(String, TensorRef)>> {
        let dict = |id: Id| match &self.values[id] {
            Value::Dict(pairs) => Some(pairs),
            _ => None,
        };
        let mut pairs = dict(self.root).ok_or("not a dictionary of tensors")?;
        // At most `{"state_dict": {"model": ...}}`.
        for _ in 0..2 {
            let inner = ["state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema"];
            let found = inner.iter().find_map(|name| {
                let (_, id) = pairs.iter().find(|(key, _)| self.string(*key) == Some(*name))?;
                dict(*id)
            });
            match found {
                Some(found) => pairs = found,
                None => break,
            }
        }
        let tensor = |(key, value): &(Id, Id)| match (self.string(*key), &self.values[*value]) {
            (Some(name), Value::Tensor(at)) => Some((name.to_string(), (**at).clone())),
            _ => None,
        };
        let found: Vec<_> = pairs.iter().filter_map(tensor).collect();
        if found.is_empty() {
            return Err("dictionary without tensors".into());
        }
        Ok(found)
    }
}

struct Unpickler<'a, R> {
    reader: &'a mut R,
    bytes_read: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: Vec<(u32, Id)>,
    storages: Vec<(String, Element, u64)>,
}

impl<R: Read> Unpickler<'_, R> {
    fn load(mut self) -> Result<Pickle> {
        loop {
            let [opcode] = self.read::<1>()?;
            match opcode {
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickle { values: self.values, root, storages: self.storages });
                }
                opcode => self.dispatch(opcode)?,
            }
        }
    }

    fn dispatch(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            0x80 => {
                let [version] = self.read::<1>()?;
                if version != 2 {
                    return Err(format!("unsupported pickle protocol: expected 2, found {version}"));
                }
            }
            b'c' => {
                let (module, name) = (self.read_line()?, self.read_line()?);
                let Some(global) = allowed_global(&module, &name) else {
                    return Err(format!(
                        "disallowed global `{module}.{name}`; save only the state dict: \
                         torch.save(model.state_dict(), ...)"
                    ));
                };
                self.push(Value::Global(global))?;
            }
            b'q' => {
                let [index] = self.read::<1>()?;
                self.memo_put(u32::from(index))?;
            }
            b'r' => {
                let index = u32::from_le_bytes(self.read()?);
                self.memo_put(index)?;
            }
            b'h' => {
                let [index] = self.read::<1>()?;
                self.memo_get(u32::from(index))?;
            }
            b'j' => {
                let index = u32::from_le_bytes(self.read()?);
                self.memo_get(index)?;
            }
            b'K' => {
                let [value] = self.read::<1>()?;
                self.push(Value::Int(i64::from(value)))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.read()?);
                self.push(Value::Int(i64::from(value)))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.read()?);
                self.push(Value::Int(i64::from(value)))?;
            }
            0x8a => {
                let [bytes] = self.read::<1>()?;
                let value = self.read_long(usize::from(bytes))?;
                self.push(value)?;
            }
            b'G' => {
                self.read::<8>()?;
                self.push(Value::Ignored)?;
            }
            0x88 | 0x89 | b'N' => self.push(Value::Ignored)?,
            b'X' | b'T' => {
                let length = u32::from_le_bytes(self.read()?) as usize;
                self.push_string(length)?;
            }
            b'U' | 0x8c => {
                let [length] = self.read::<1>()?;
                self.push_string(usize::from(length))?;
            }
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'(' => {
                if self.marks.len() >= MAX_VALUES {
                    return Err(format!("more than {MAX_VALUES} marks in the pickle"));
                }
                self.marks.push(self.stack.len());
            }
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))?;
            }
            0x85..=0x87 => {
                let first = self.stack.len().checked_sub(usize::from(opcode - 0x84));
                let items = self.stack.split_off(first.ok_or("tuple opcode on a short stack")?);
                self.push(Value::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.persistent_load(id)?;
                self.push(storage)?;
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.reduce(function, arguments)?;
            }
            b'b' => {
                // BUILD: the attribute `_metadata` of an OrderedDict.
                self.pop()?;
                if !matches!(self.stack.last().map(|id| &self.values[*id]), Some(Value::Dict(_))) {
                    return Err("BUILD on a value that is not a dictionary".into());
                }
            }
            opcode => return Err(format!("unsupported pickle opcode 0x{opcode:02x}")),
        }
        Ok(())
    }

    fn read<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.bytes_read += bytes.len();
        if self.bytes_read > MAX_BYTES {
            return Err(format!("pickle larger than {MAX_BYTES} bytes"));
        }
        self.reader.read_exact(bytes).map_err(|_| "truncated pickle".to_string())
    }

    /// Reads up to the end of a line.
    fn read_line(&mut self) -> Result<String> {
        let mut text = Vec::new();
        loop {
            match self.read::<1>()? {
                [b'\n'] => break,
                _ if text.len() > MAX_LINE => {
                    return Err(format!("global name longer than {MAX_LINE} bytes"));
                }
                [byte] => text.push(byte),
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn push_string(&mut self, length: usize) -> Result<()> {
        if length > MAX_STRING {
            return Err(format!("string of {length} bytes (limit {MAX_STRING})"));
        }
        let mut text = vec![0; length];
        self.read_exact(&mut text)?;
        let text = String::from_utf8(text).map_err(|_| "string is not UTF-8")?;
        self.push(Value::String(text))
    }

    fn read_long(&mut self, bytes: usize) -> Result<Value> {
        let mut value = [0; 255];
        self.read_exact(&mut value[..bytes])?;
        // Only the magic number of the legacy format is longer.
        Ok(match bytes {
            0..=8 => {
                let negative = bytes > 0 && value[bytes - 1] >= 0x80;
                let mut all = if negative { [0xff; 8] } else { [0; 8] };
                all[..bytes].copy_from_slice(&value[..bytes]);
                Value::Int(i64::from_le_bytes(all))
            }
            _ => Value::Ignored,
        })
    }

    fn push(&mut self, value: Value) -> Result<()> {
        if self.values.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values in the pickle"));
        }
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id> {
        if self.marks.last().is_some_and(|mark| *mark >= self.stack.len()) {
            return Err("pop from an empty stack".into());
        }
        self.stack.pop().ok_or_else(|| "pop from an empty stack".into())
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or("missing mark")?))
    }

    fn memo_put(&mut self, index: u32) -> Result<()> {
        let id = *self.stack.last().ok_or("PUT on an empty stack")?;
        // Picklers number the memo in ascending order.
        match self.memo.last() {
            Some((last, _)) if *last >= index => match self.memo.binary_search_by_key(&index, |m| m.0) {
                Ok(at) => self.memo[at].1 = id,
                Err(_) => return Err("memo indices out of order".into()),
            },
            _ => self.memo.push((index, id)),
        }
        Ok(())
    }

    fn memo_get(&mut self, index: u32) -> Result<()> {
        let found = self.memo.binary_search_by_key(&index, |m| m.0);
        let at = found.map_err(|_| "GET of an unknown memo index")?;
        if self.stack.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values on the stack"));
        }
        self.stack.push(self.memo[at].1);
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = *self.stack.last().ok_or("APPEND on an empty stack")?;
        match &mut self.values[list] {
            Value::List(all) => all.extend(items),
            _ => return Err("APPEND to a value that is not a list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let dict = *self.stack.last().ok_or("SETITEM on an empty stack")?;
        let pairs = items.chunks_exact(2);
        match &mut self.values[dict] {
            Value::Dict(all) if pairs.remainder().is_empty() => all.extend(pairs.map(|p| (p[0], p[1]))),
            Value::Dict(_) => return Err("SETITEMS with a key without a value".into()),
            _ => return Err("SETITEM on a value that is not a dictionary".into()),
        }
        Ok(())
    }

    fn items(&self, id: Id) -> Option<&[Id]> {
        match &self.values[id] {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// Loads the persistent id `("storage", type, key, device, length)`.
    fn persistent_load(&mut self, id: Id) -> Result<Value> {
        let wrong = || "invalid description of a storage".to_string();
        let [kind, element, key, _, length, ..] = self.items(id).ok_or_else(wrong)? else {
            return Err(wrong());
        };
        let string = |id: &Id| match &self.values[*id] {
            Value::String(string) => Some(string.clone()),
            _ => None,
        };
        let (Value::Global(Global::Storage(element)), Value::Int(length)) =
            (&self.values[*element], &self.values[*length])
        else {
            return Err(wrong());
        };
        let (Some(key), Ok(length)) = (string(key), u64::try_from(*length)) else { return Err(wrong()) };
        if string(kind).as_deref() != Some("storage") {
            return Err(wrong());
        }
        let element = *element;
        self.storages.push((key.clone(), element, length));
        Ok(Value::Storage { key, element, length })
    }

    fn reduce(&mut self, function: Id, arguments: Id) -> Result<()> {
        let Value::Global(global) = &self.values[function] else {
            return Err("REDUCE of a value that is not a global".into());
        };
        let arguments = self.items(arguments).ok_or("REDUCE without an argument tuple")?;
        match global {
            Global::OrderedDict => {
                // Python 2 pickles a list of pairs.
                let pairs = arguments.first().and_then(|id| self.items(*id)).unwrap_or_default();
                let pairs = pairs.iter().map(|id| match self.items(*id) {
                    Some([key, value]) => Ok((*key, *value)),
                    _ => Err("OrderedDict of values that are not pairs".to_string()),
                });
                let pairs = pairs.collect::<Result<Vec<_>>>()?;
                self.push(Value::Dict(pairs))
            }
            Global::RebuildTensor => {
                let tensor = self.rebuild_tensor(arguments)?;
                self.push(Value::Tensor(Box::new(tensor)))
            }
            Global::RebuildParameter => {
                let id = *arguments.first().ok_or("parameter without a tensor")?;
                self.stack.push(id);
                Ok(())
            }
            Global::Storage(_) => Err("REDUCE of a storage type".into()),
        }
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

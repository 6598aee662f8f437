//! The part of Python's pickle format that PyTorch writes weights in.
//!
//! Nothing is ever called: the few functions that PyTorch names are known by name and make a
//! description of a tensor, every other name is refused, as PyTorch's `weights_only` does. Values
//! live in one list and refer to each other by place, so that neither deep nor repeated nesting costs
//! more memory or stack than the bytes that describe it.

use std::io::Read;

/// Most bytes of a stream: a thousand tensors take a tenth of a MiB.
const MOST_BYTES: usize = 4 << 20;
/// Most values of a stream: a thousand tensors take some twenty thousand.
const MOST_VALUES: usize = 1 << 17;

/// Place of a value.
type Id = usize;

/// A function or type that may be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
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
    /// Counters and indices, never read: bytes of one element.
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

fn known(module: &str, name: &str) -> Option<Known> {
    use Known::{OrderedDict, RebuildParameter, RebuildTensor, Storage};
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

/// A tensor as the stream describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorAt {
    /// Key of its storage.
    pub(super) storage: String,
    pub(super) element: Element,
    /// Elements of the storage.
    pub(super) length: u64,
    /// Element that it begins at.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

#[derive(Debug, Clone)]
enum Value {
    /// What is of no interest: numbers with a fraction, flags, nothing.
    Plain,
    Int(i64),
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Known(Known),
    Storage {
        key: String,
        element: Element,
        length: u64,
    },
    Tensor(Box<TensorAt>),
}

/// What one stream leaves.
#[derive(Debug)]
pub(super) struct Pickled {
    values: Vec<Value>,
    root: Id,
    /// Storages in the order of their first mention.
    pub(super) storages: Vec<(String, Element, u64)>,
}

type Read1<T> = Result<T, String>;

impl Pickled {
    /// Reads one stream, up to its end mark.
    pub(super) fn read(from: &mut impl Read) -> Read1<Self> {
        let machine = Machine {
            from,
            used: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            storages: Vec::new(),
        };
        machine.run()
    }

    /// Text of a list or tuple.
    pub(super) fn texts(&self) -> Option<Vec<&str>> {
        match &self.values[self.root] {
            Value::List(all) | Value::Tuple(all) => all.iter().map(|id| self.text(*id)).collect(),
            _ => None,
        }
    }

    fn text(&self, id: Id) -> Option<&str> {
        match &self.values[id] {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The tensors by name: those of the dictionary itself, or of the first one inside of it that is
    /// called as training scripts call it.
    pub(super) fn tensors(self) -> Read1<Vec<(String, TensorAt)>> {
        let dict = |id: Id| match &self.values[id] {
            Value::Dict(pairs) => Some(pairs),
            _ => None,
        };
        let mut pairs = dict(self.root).ok_or("it holds no dictionary of tensors")?;
        // `{"state_dict": {"model": ...}}` at the deepest.
        for _ in 0..2 {
            let inner = ["state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema"];
            let found = inner.iter().find_map(|name| {
                let (_, id) = pairs.iter().find(|(key, _)| self.text(*key) == Some(*name))?;
                dict(*id)
            });
            match found {
                Some(found) => pairs = found,
                None => break,
            }
        }
        let tensor = |(key, value): &(Id, Id)| match (self.text(*key), &self.values[*value]) {
            (Some(name), Value::Tensor(at)) => Some((name.to_string(), (**at).clone())),
            _ => None,
        };
        let found: Vec<_> = pairs.iter().filter_map(tensor).collect();
        if found.is_empty() {
            return Err("its dictionary holds no tensor".into());
        }
        Ok(found)
    }
}

struct Machine<'a, R> {
    from: &'a mut R,
    used: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: Vec<(u32, Id)>,
    storages: Vec<(String, Element, u64)>,
}

impl<R: Read> Machine<'_, R> {
    fn run(mut self) -> Read1<Pickled> {
        loop {
            let [op] = self.take::<1>()?;
            match op {
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickled { values: self.values, root, storages: self.storages });
                }
                op => self.step(op)?,
            }
        }
    }

    fn step(&mut self, op: u8) -> Read1<()> {
        match op {
            0x80 => {
                let [version] = self.take::<1>()?;
                if version != 2 {
                    return Err(format!("pickle protocol {version}; PyTorch writes 2"));
                }
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let Some(known) = known(&module, &name) else {
                    return Err(format!(
                        "it names `{module}.{name}`, which is neither a tensor nor a storage; save only the \
                         state dict: torch.save(model.state_dict(), ...)"
                    ));
                };
                self.push(Value::Known(known))?;
            }
            b'q' => {
                let [place] = self.take::<1>()?;
                self.remember(u32::from(place))?;
            }
            b'r' => {
                let place = u32::from_le_bytes(self.take()?);
                self.remember(place)?;
            }
            b'h' => {
                let [place] = self.take::<1>()?;
                self.recall(u32::from(place))?;
            }
            b'j' => {
                let place = u32::from_le_bytes(self.take()?);
                self.recall(place)?;
            }
            b'K' => {
                let [value] = self.take::<1>()?;
                self.push(Value::Int(i64::from(value)))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.take()?);
                self.push(Value::Int(i64::from(value)))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.take()?);
                self.push(Value::Int(i64::from(value)))?;
            }
            0x8a => {
                let [bytes] = self.take::<1>()?;
                let value = self.long(usize::from(bytes))?;
                self.push(value)?;
            }
            b'G' => {
                self.take::<8>()?;
                self.push(Value::Plain)?;
            }
            0x88 | 0x89 | b'N' => self.push(Value::Plain)?,
            b'X' | b'T' => {
                let length = u32::from_le_bytes(self.take()?) as usize;
                self.push_text(length)?;
            }
            b'U' | 0x8c => {
                let [length] = self.take::<1>()?;
                self.push_text(usize::from(length))?;
            }
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b'(' => {
                if self.marks.len() >= MOST_VALUES {
                    return Err(format!("more than {MOST_VALUES} marks in its pickle"));
                }
                self.marks.push(self.stack.len());
            }
            b't' => {
                let items = self.since_mark()?;
                self.push(Value::Tuple(items))?;
            }
            0x85..=0x87 => {
                let first = self.stack.len().checked_sub(usize::from(op - 0x84));
                let items = self.stack.split_off(first.ok_or("a tuple of values that are not there")?);
                self.push(Value::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.since_mark()?;
                self.append(items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.set(&items)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(storage)?;
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.reduce(function, arguments)?;
            }
            b'b' => {
                // The attributes of a dictionary (PyTorch's `_metadata`).
                self.pop()?;
                if !matches!(self.stack.last().map(|id| &self.values[*id]), Some(Value::Dict(_))) {
                    return Err("it sets attributes of something that is no dictionary".into());
                }
            }
            op => return Err(format!("pickle operation 0x{op:02x}, which weights do not need")),
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> Read1<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Read1<()> {
        self.used += bytes.len();
        if self.used > MOST_BYTES {
            return Err(format!("more than {MOST_BYTES} bytes of pickle"));
        }
        self.from.read_exact(bytes).map_err(|_| "its pickle ends too early".to_string())
    }

    /// Text up to the end of a line.
    fn line(&mut self) -> Read1<String> {
        let mut text = Vec::new();
        loop {
            match self.take::<1>()? {
                [b'\n'] => break,
                _ if text.len() > 200 => return Err("a name of more than 200 bytes".into()),
                [byte] => text.push(byte),
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn push_text(&mut self, length: usize) -> Read1<()> {
        if length > 4096 {
            return Err(format!("a text of {length} bytes; at most 4096 are read"));
        }
        let mut text = vec![0; length];
        self.fill(&mut text)?;
        let text = String::from_utf8(text).map_err(|_| "a text that is no UTF-8")?;
        self.push(Value::Text(text))
    }

    fn long(&mut self, bytes: usize) -> Read1<Value> {
        let mut value = [0; 255];
        self.fill(&mut value[..bytes])?;
        // Only a number that marks the format is longer; nobody reads it.
        Ok(match bytes {
            0..=8 => {
                let negative = bytes > 0 && value[bytes - 1] >= 0x80;
                let mut all = if negative { [0xff; 8] } else { [0; 8] };
                all[..bytes].copy_from_slice(&value[..bytes]);
                Value::Int(i64::from_le_bytes(all))
            }
            _ => Value::Plain,
        })
    }

    fn push(&mut self, value: Value) -> Read1<()> {
        if self.values.len() >= MOST_VALUES {
            return Err(format!("more than {MOST_VALUES} values in its pickle"));
        }
        self.values.push(value);
        self.stack.push(self.values.len() - 1);
        Ok(())
    }

    fn pop(&mut self) -> Read1<Id> {
        if self.marks.last().is_some_and(|mark| *mark >= self.stack.len()) {
            return Err("its pickle takes a value that is not there".into());
        }
        self.stack.pop().ok_or_else(|| "its pickle takes a value that is not there".into())
    }

    fn since_mark(&mut self) -> Read1<Vec<Id>> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or("its pickle has no mark where one is needed")?))
    }

    fn remember(&mut self, place: u32) -> Read1<()> {
        let id = *self.stack.last().ok_or("its pickle remembers a value that is not there")?;
        // Places are numbered in rising order as they are written.
        match self.memo.last() {
            Some((last, _)) if *last >= place => match self.memo.binary_search_by_key(&place, |m| m.0) {
                Ok(at) => self.memo[at].1 = id,
                Err(_) => return Err("places in its pickle's memory are out of order".into()),
            },
            _ => self.memo.push((place, id)),
        }
        Ok(())
    }

    fn recall(&mut self, place: u32) -> Read1<()> {
        let found = self.memo.binary_search_by_key(&place, |m| m.0);
        let at = found.map_err(|_| "its pickle recalls what it never remembered")?;
        if self.stack.len() >= MOST_VALUES {
            return Err(format!("more than {MOST_VALUES} values on its pickle's stack"));
        }
        self.stack.push(self.memo[at].1);
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Read1<()> {
        let list = *self.stack.last().ok_or("its pickle appends to nothing")?;
        match &mut self.values[list] {
            Value::List(all) => all.extend(items),
            _ => return Err("its pickle appends to something that is no list".into()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Read1<()> {
        let dict = *self.stack.last().ok_or("its pickle sets an entry of nothing")?;
        let pairs = items.chunks_exact(2);
        match &mut self.values[dict] {
            Value::Dict(all) if pairs.remainder().is_empty() => all.extend(pairs.map(|p| (p[0], p[1]))),
            Value::Dict(_) => return Err("its pickle sets a key without a value".into()),
            _ => return Err("its pickle sets an entry of something that is no dictionary".into()),
        }
        Ok(())
    }

    fn items(&self, id: Id) -> Option<&[Id]> {
        match &self.values[id] {
            Value::Tuple(items) | Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// `("storage", type, key, device, elements)`.
    fn storage(&mut self, id: Id) -> Read1<Value> {
        let wrong = || "a storage that is not described as PyTorch does".to_string();
        let [kind, element, key, _, length, ..] = self.items(id).ok_or_else(wrong)? else {
            return Err(wrong());
        };
        let text = |id: &Id| match &self.values[*id] {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        };
        let (Value::Known(Known::Storage(element)), Value::Int(length)) =
            (&self.values[*element], &self.values[*length])
        else {
            return Err(wrong());
        };
        let (Some(key), Ok(length)) = (text(key), u64::try_from(*length)) else { return Err(wrong()) };
        if text(kind).as_deref() != Some("storage") {
            return Err(wrong());
        }
        let element = *element;
        self.storages.push((key.clone(), element, length));
        Ok(Value::Storage { key, element, length })
    }

    fn reduce(&mut self, function: Id, arguments: Id) -> Read1<()> {
        let Value::Known(known) = &self.values[function] else {
            return Err("it calls something that is no function".into());
        };
        let arguments = self.items(arguments).ok_or("it calls a function without its arguments")?;
        match known {
            Known::OrderedDict => {
                // Python 2 wrote a list of pairs.
                let pairs = arguments.first().and_then(|id| self.items(*id)).unwrap_or_default();
                let pairs = pairs.iter().map(|id| match self.items(*id) {
                    Some([key, value]) => Ok((*key, *value)),
                    _ => Err("a dictionary of something other than pairs".to_string()),
                });
                let pairs = pairs.collect::<Read1<Vec<_>>>()?;
                self.push(Value::Dict(pairs))
            }
            Known::RebuildTensor => {
                let tensor = self.tensor(arguments)?;
                self.push(Value::Tensor(Box::new(tensor)))
            }
            Known::RebuildParameter => {
                let id = *arguments.first().ok_or("a parameter without its tensor")?;
                self.stack.push(id);
                Ok(())
            }
            Known::Storage(_) => Err("it makes a storage by itself".into()),
        }
    }

    /// `(storage, offset, shape, strides, ...)`.
    fn tensor(&self, arguments: &[Id]) -> Read1<TensorAt> {
        let wrong = || "a tensor that is not described as PyTorch does".to_string();
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
        Ok(TensorAt { storage: key.clone(), element: *element, length: *length, offset, shape, strides })
    }
}

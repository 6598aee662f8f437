//! The stack machine of the unpickler.

use std::io::Read;

use super::calls::Global;
use super::{Element, IGNORED, Id, Pickle, Result, Value};

/// Maximum size of a pickle in bytes. A thousand tensors take about 0.1 MiB.
const MAX_BYTES: usize = 32 << 20;
/// Maximum number of values, and of stack entries and marks. A thousand tensors take about 20 000; floats
/// take none.
const MAX_VALUES: usize = 1 << 17;

/// Maximum length of a string in bytes; longer ones (source code, byte arrays) are skipped.
const MAX_STRING: usize = 4096;
/// Maximum length of a global's module or name in bytes.
const MAX_LINE: usize = 200;

pub(super) struct Unpickler<'a, R> {
    reader: &'a mut R,
    bytes_read: usize,
    pub(super) values: Vec<Value>,
    pub(super) stack: Vec<Id>,
    marks: Vec<usize>,
    memo: Vec<(u32, Id)>,
    pub(super) storages: Vec<(String, Element, u64)>,
}

impl<'a, R: Read> Unpickler<'a, R> {
    pub(super) fn new(reader: &'a mut R) -> Self {
        Self {
            reader,
            bytes_read: 0,
            values: vec![Value::Ignored],
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            storages: Vec::new(),
        }
    }

    pub(super) fn load(mut self) -> Result<Pickle> {
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
                if !(2..=5).contains(&version) {
                    return Err(format!("unsupported pickle protocol: expected 2 to 5, found {version}"));
                }
            }
            // FRAME
            0x95 => {
                self.read::<8>()?;
            }
            b'c' => {
                let (module, name) = (self.read_line()?, self.read_line()?);
                self.push_global(&module, &name)?;
            }
            // STACK_GLOBAL
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let string = |id: Id| match &self.values[id] {
                    Value::String(string) if string.len() <= MAX_LINE => Ok(string.clone()),
                    _ => Err("global without a name"),
                };
                let (module, name) = (string(module)?, string(name)?);
                self.push_global(&module, &name)?;
            }
            // MEMOIZE
            0x94 => self.memo_put(self.memo.len() as u32)?,
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
            // LONG4
            0x8b => {
                let bytes = u32::from_le_bytes(self.read()?);
                self.skip(u64::from(bytes))?;
                self.push_id(IGNORED)?;
            }
            b'G' => {
                self.read::<8>()?;
                self.push_id(IGNORED)?;
            }
            0x88 | 0x89 | b'N' => self.push_id(IGNORED)?,
            b'X' | b'T' => {
                let length = u32::from_le_bytes(self.read()?);
                self.push_string(u64::from(length))?;
            }
            b'U' | 0x8c => {
                let [length] = self.read::<1>()?;
                self.push_string(u64::from(length))?;
            }
            0x8d => {
                let length = u64::from_le_bytes(self.read()?);
                self.push_string(length)?;
            }
            // Bytes
            b'C' => {
                let [length] = self.read::<1>()?;
                self.skip(u64::from(length))?;
                self.push_id(IGNORED)?;
            }
            b'B' => {
                let length = u32::from_le_bytes(self.read()?);
                self.skip(u64::from(length))?;
                self.push_id(IGNORED)?;
            }
            0x8e | 0x96 => {
                let length = u64::from_le_bytes(self.read()?);
                self.skip(length)?;
                self.push_id(IGNORED)?;
            }
            // Sets
            0x8f => self.push(Value::List(Vec::new()))?,
            0x91 => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))?;
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
            b'e' | 0x90 => {
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
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_mark()?;
            }
            b'2' => {
                let top = *self.stack.last().ok_or("DUP on an empty stack")?;
                self.push_id(top)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.persistent_load(id)?;
                self.push_id(storage)?;
            }
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let result = self.call(function, arguments)?;
                self.push_id(result)?;
            }
            // NEWOBJ_EX
            0x92 => {
                let (_, arguments, class) = (self.pop()?, self.pop()?, self.pop()?);
                let result = self.call(class, arguments)?;
                self.push_id(result)?;
            }
            // BUILD. The attributes of dictionaries (`_metadata`) and tensors are not read.
            b'b' => {
                let attributes = self.pop()?;
                let at = *self.stack.last().ok_or("BUILD on an empty stack")?;
                if let Value::Object(object) = &mut self.values[at] {
                    object.state = Some(attributes);
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

    fn push_string(&mut self, length: u64) -> Result<()> {
        if length > MAX_STRING as u64 {
            self.skip(length)?;
            return self.push_id(IGNORED);
        }
        let mut text = vec![0; length as usize];
        self.read_exact(&mut text)?;
        self.push(Value::String(String::from_utf8_lossy(&text).into_owned()))
    }

    fn skip(&mut self, length: u64) -> Result<()> {
        if length > (MAX_BYTES - self.bytes_read) as u64 {
            return Err(format!("value of {length} bytes in the pickle (limit {MAX_BYTES})"));
        }
        let mut left = length as usize;
        let mut buffer = [0; 4096];
        while left > 0 {
            let count = left.min(buffer.len());
            self.read_exact(&mut buffer[..count])?;
            left -= count;
        }
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<()> {
        self.push(Value::Global(Box::new(Global::new(module, name))))
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

    pub(super) fn push(&mut self, value: Value) -> Result<()> {
        let id = self.add(value)?;
        self.push_id(id)
    }

    pub(super) fn push_id(&mut self, id: Id) -> Result<()> {
        if self.stack.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values on the stack"));
        }
        self.stack.push(id);
        Ok(())
    }

    /// Adds a value to the arena.
    pub(super) fn add(&mut self, value: Value) -> Result<Id> {
        if self.values.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values in the pickle"));
        }
        self.values.push(value);
        Ok(self.values.len() - 1)
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
        self.push_id(self.memo[at].1)
    }

    fn append(&mut self, items: Vec<Id>) -> Result<()> {
        let list = *self.stack.last().ok_or("APPEND on an empty stack")?;
        match &mut self.values[list] {
            Value::List(all) => all.extend(items),
            // A subclass of `list`
            Value::Object(_) => {}
            _ => return Err("APPEND to a value that is not a list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Id]) -> Result<()> {
        let dict = *self.stack.last().ok_or("SETITEM on an empty stack")?;
        let pairs = items.chunks_exact(2);
        match &mut self.values[dict] {
            Value::Dict(all) if pairs.remainder().is_empty() => all.extend(pairs.map(|p| (p[0], p[1]))),
            Value::Object(object) if pairs.remainder().is_empty() => {
                object.items.extend(pairs.map(|p| (p[0], p[1])));
            }
            Value::Dict(_) | Value::Object(_) => return Err("SETITEMS with a key without a value".into()),
            _ => return Err("SETITEM on a value that is not a dictionary".into()),
        }
        Ok(())
    }
}

//! Python pickles as plain values. Nothing of a pickle is ever run: a call is kept as what was to be called and with
//! what, and names that the reader does not know are refused. Not here: what the values mean ([`super::pytorch`]).
//!
//! Everything made is one value per opcode at most, in one list, and refers to others by number: what is shared or
//! goes in circles in the pickle does so here, and takes no more memory than a small multiple of the pickle.

use std::collections::HashMap;

use super::zip::shown;
use crate::limits::PICKLE_VALUES;

/// A value's number.
pub(super) type Id = u32;

const NONE: Id = 0;
const TRUE: Id = 1;
const FALSE: Id = 2;
const EMPTY: Id = 3;

/// What a pickle consists of; `G` is what the reader knows a global name as.
#[derive(Debug)]
pub(super) enum Value<'a, G> {
    Bool(bool),
    Int(i64),
    Text(&'a str),
    Tuple(Vec<Id>),
    /// A list or a set.
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(G),
    /// Something outside the pickle, and how it is called there.
    Persistent(Id),
    Object(Object<G>),
    /// What it is: None, a float, bytes, an integer over 64 bits.
    Other(&'static str),
}

/// What a call would have made.
#[derive(Debug)]
pub(super) struct Object<G> {
    pub class: G,
    /// The arguments, a tuple.
    pub args: Id,
    /// Keys and values that were set on it.
    pub items: Vec<(Id, Id)>,
    /// What was appended to it.
    pub elements: Vec<Id>,
    /// The state of its own that it was given, if it was.
    pub state: Option<Id>,
}

/// A pickle, read: all its values, and which of them is the whole.
#[derive(Debug)]
pub(super) struct Pickle<'a, G> {
    pub values: Vec<Value<'a, G>>,
    pub root: Id,
}

impl<'a, G: Copy + PartialEq> Pickle<'a, G> {
    /// Reads a pickle of protocol 2 to 5. `known` says what a name (module, name) stands for, or why it is refused; it is
    /// told whether the name stands among what `lenient` is called with.
    pub fn parse(
        bytes: &'a [u8],
        lenient: G,
        known: impl Fn(&str, &str, bool) -> Result<G, String>,
    ) -> Result<Self, String> {
        let values = vec![Value::Other("None"), Value::Bool(true), Value::Bool(false), Value::Tuple(Vec::new())];
        let (stack, marks, memo) = (Vec::new(), Vec::new(), HashMap::new());
        let mut machine = Machine { bytes, at: 0, values, stack, marks, memo, lenient, under: None, known };
        let root = loop {
            let at = machine.at;
            match machine.step() {
                Ok(None) => {}
                Ok(Some(root)) => break root,
                Err(Stop::Refused(message)) => return Err(message),
                Err(Stop::Bad(what)) => return Err(format!("pickle: {what} at byte {at}; was the file damaged?")),
            }
        };
        Ok(Self { values: machine.values, root })
    }

    pub fn get(&self, id: Id) -> &Value<'a, G> {
        &self.values[id as usize]
    }

    /// The elements of a tuple.
    pub fn tuple(&self, id: Id) -> Option<&[Id]> {
        if let Value::Tuple(elements) = self.get(id) { Some(elements) } else { None }
    }
}

enum Stop {
    /// No pickle, or one that uses what is not read.
    Bad(String),
    Refused(String),
}

impl From<&str> for Stop {
    fn from(what: &str) -> Self {
        Self::Bad(what.to_owned())
    }
}

struct Machine<'a, G, K> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a, G>>,
    stack: Vec<Id>,
    /// Where in the stack the marks stand.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    lenient: G,
    /// Where in the stack the first `lenient` waits for what it is called with, if there is one.
    under: Option<usize>,
    known: K,
}

impl<'a, G: Copy + PartialEq, K: Fn(&str, &str, bool) -> Result<G, String>> Machine<'a, G, K> {
    /// One opcode; the whole once it is done.
    fn step(&mut self) -> Result<Option<Id>, Stop> {
        match self.u8()? {
            // PROTO, FRAME
            0x80 => match self.u8()? {
                2..=5 => {}
                other => return Err(Stop::Bad(format!("protocol {other}, expected 2 to 5"))),
            },
            0x95 => drop(self.u64()?),
            // STOP
            b'.' => {
                let root = self.pop()?;
                return if self.stack.is_empty() { Ok(Some(root)) } else { Err("values left over".into()) };
            }
            // Marks, and what only moves values
            b'(' if self.marks.len() >= PICKLE_VALUES => return Err(too_many()),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.above_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }
            // Constants and numbers
            b'N' => self.push(NONE)?,
            0x88 => self.push(TRUE)?,
            0x89 => self.push(FALSE)?,
            b'J' => {
                let number = i32::from_le_bytes(self.array()?);
                self.make(Value::Int(number.into()))?;
            }
            b'K' => {
                let number = self.u8()?;
                self.make(Value::Int(number.into()))?;
            }
            b'M' => {
                let number = u16::from_le_bytes(self.array()?);
                self.make(Value::Int(number.into()))?;
            }
            0x8a => {
                let length = self.u8()?;
                self.long(length.into())?;
            }
            0x8b => {
                let length = i32::from_le_bytes(self.array()?);
                self.long(u64::try_from(length).map_err(|_| "a negative length")?)?;
            }
            b'G' => {
                self.take(8)?;
                self.make(Value::Other("a float"))?;
            }
            // Text: SHORT_BINSTRING, BINSTRING, SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
            b'U' | 0x8c => {
                let length = self.u8()?;
                self.text(length.into())?;
            }
            b'T' | b'X' => {
                let length = self.u32()?;
                self.text(length.into())?;
            }
            0x8d => {
                let length = self.u64()?;
                self.text(length)?;
            }
            // Bytes: SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' => {
                let length = self.u8()?;
                self.opaque(length.into())?;
            }
            b'B' => {
                let length = self.u32()?;
                self.opaque(length.into())?;
            }
            0x8e | 0x96 => {
                let length = self.u64()?;
                self.opaque(length)?;
            }
            opcode => self.structure(opcode)?,
        }
        Ok(None)
    }

    /// The opcodes that put values together.
    fn structure(&mut self, opcode: u8) -> Result<(), Stop> {
        match opcode {
            b')' => self.push(EMPTY),
            // EMPTY_LIST, EMPTY_SET
            b']' | 0x8f => self.make(Value::List(Vec::new())),
            b'}' => self.make(Value::Dict(Vec::new())),
            b't' => {
                let elements = self.above_mark()?;
                self.make(Value::Tuple(elements))
            }
            // TUPLE1 to TUPLE3
            0x85..=0x87 => {
                let mut elements = Vec::with_capacity(3);
                for _ in 0x85..=opcode {
                    elements.push(self.pop()?);
                }
                elements.reverse();
                self.make(Value::Tuple(elements))
            }
            // LIST, FROZENSET
            b'l' | 0x91 => {
                let elements = self.above_mark()?;
                self.make(Value::List(elements))
            }
            b'd' => {
                let elements = self.above_mark()?;
                let pairs = pairs(&elements)?;
                self.make(Value::Dict(pairs))
            }
            b'a' => {
                let element = self.pop()?;
                self.append(&[element])
            }
            // APPENDS, ADDITEMS
            b'e' | 0x90 => {
                let elements = self.above_mark()?;
                self.append(&elements)
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])
            }
            b'u' => {
                let elements = self.above_mark()?;
                self.set_items(&elements)
            }
            // BINPUT, LONG_BINPUT, MEMOIZE
            b'q' => {
                let number = self.u8()?;
                self.put(number.into())
            }
            b'r' => {
                let number = self.u32()?;
                self.put(number)
            }
            0x94 => self.put(self.memo.len() as u32),
            b'h' => {
                let number = self.u8()?;
                self.recall(number.into())
            }
            b'j' => {
                let number = self.u32()?;
                self.recall(number)
            }
            // GLOBAL, STACK_GLOBAL
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(module, name)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (&self.values[module as usize], &self.values[name as usize]) {
                    (&Value::Text(module), &Value::Text(name)) => self.global(module, name),
                    _ => Err("a global name that is no text".into()),
                }
            }
            // REDUCE, NEWOBJ; NEWOBJ_EX
            b'R' | 0x81 => self.call(),
            0x92 => {
                self.pop()?;
                self.call()
            }
            b'b' => {
                let state = self.pop()?;
                let top = self.top()?;
                if let Value::Object(object) = &mut self.values[top as usize] {
                    object.state = Some(state);
                }
                Ok(())
            }
            b'Q' => {
                let name = self.pop()?;
                self.make(Value::Persistent(name))
            }
            other => Err(Stop::Bad(format!(
                "opcode {other:#04x} ({:?}), which torch.save does not write by itself (give it no pickle_protocol below 2),",
                char::from(other)
            ))),
        }
    }

    fn call(&mut self) -> Result<(), Stop> {
        let (args, class) = (self.pop()?, self.pop()?);
        let &Value::Global(class) = &self.values[class as usize] else {
            return Err("a call of what has no name".into());
        };
        if !matches!(self.values[args as usize], Value::Tuple(_)) {
            return Err("arguments that are no tuple".into());
        }
        self.make(Value::Object(Object { class, args, items: Vec::new(), elements: Vec::new(), state: None }))
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Stop> {
        let known = (self.known)(module, name, self.under.is_some()).map_err(Stop::Refused)?;
        self.make(Value::Global(known))
    }

    fn append(&mut self, elements: &[Id]) -> Result<(), Stop> {
        let top = self.top()?;
        match &mut self.values[top as usize] {
            Value::List(list) | Value::Object(Object { elements: list, .. }) => list.extend(elements),
            _ => return Err("elements for what is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, elements: &[Id]) -> Result<(), Stop> {
        let pairs = pairs(elements)?;
        let top = self.top()?;
        match &mut self.values[top as usize] {
            Value::Dict(items) | Value::Object(Object { items, .. }) => items.extend(pairs),
            _ => return Err("keys for what is no dict".into()),
        }
        Ok(())
    }

    fn put(&mut self, number: u32) -> Result<(), Stop> {
        let top = self.top()?;
        self.memo.insert(number, top);
        if self.memo.len() > PICKLE_VALUES { Err(too_many()) } else { Ok(()) }
    }

    fn recall(&mut self, number: u32) -> Result<(), Stop> {
        let &id = self.memo.get(&number).ok_or_else(|| Stop::Bad(format!("memo {number}, which was never set,")))?;
        self.push(id)
    }

    fn make(&mut self, value: Value<'a, G>) -> Result<(), Stop> {
        if self.values.len() >= PICKLE_VALUES {
            return Err(too_many());
        }
        self.values.push(value);
        self.push((self.values.len() - 1) as Id)
    }

    fn push(&mut self, id: Id) -> Result<(), Stop> {
        if self.stack.len() >= PICKLE_VALUES {
            return Err(too_many());
        }
        if self.under.is_none() && matches!(&self.values[id as usize], Value::Global(name) if *name == self.lenient) {
            self.under = Some(self.stack.len());
        }
        self.stack.push(id);
        Ok(())
    }

    /// The top of the stack; not below the last mark.
    fn top(&self) -> Result<Id, Stop> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..).and_then(|above| above.last().copied()).ok_or_else(|| "nothing on the stack".into())
    }

    fn pop(&mut self) -> Result<Id, Stop> {
        let top = self.top()?;
        self.shrink(self.stack.len() - 1);
        Ok(top)
    }

    /// Takes the last mark and what is above it.
    fn above_mark(&mut self) -> Result<Vec<Id>, Stop> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        let above = self.stack.split_off(mark);
        self.shrink(mark);
        Ok(above)
    }

    fn shrink(&mut self, length: usize) {
        self.stack.truncate(length);
        self.under = self.under.filter(|at| *at < length);
    }

    fn text(&mut self, length: u64) -> Result<(), Stop> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "text that is not UTF-8")?;
        self.make(Value::Text(text))
    }

    fn opaque(&mut self, length: u64) -> Result<(), Stop> {
        self.take(length)?;
        self.make(Value::Other("bytes"))
    }

    /// A little-endian number of any length, in two's complement.
    fn long(&mut self, length: u64) -> Result<(), Stop> {
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut wide = if negative { [0xff; 8] } else { [0; 8] };
        let value = match wide.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(wide))
            }
            None => Value::Other("a number over 64 bits"),
        };
        self.make(value)
    }

    fn line(&mut self) -> Result<&'a str, Stop> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or("a name without an end")?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| "a name that is not UTF-8".into())
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Stop> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        let taken = taken.ok_or_else(|| Stop::Bad(format!("{} bytes, expected {length} more,", rest.len())))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stop> {
        let bytes = self.take(N as u64)?;
        bytes.first_chunk().copied().ok_or_else(|| "too few bytes".into())
    }

    fn u8(&mut self) -> Result<u8, Stop> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, Stop> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Stop> {
        self.array().map(u64::from_le_bytes)
    }
}

fn pairs(elements: &[Id]) -> Result<Vec<(Id, Id)>, Stop> {
    let (pairs, rest) = elements.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    } else {
        Err("a key without a value".into())
    }
}

fn too_many() -> Stop {
    Stop::Refused(format!("pickle: more than {PICKLE_VALUES} values; save the weights alone, in several files"))
}

/// A global name as Python writes it, cut where it is too long for a message.
pub(super) fn qualified(module: &str, name: &str) -> String {
    format!("{}.{}", shown(module), shown(name))
}

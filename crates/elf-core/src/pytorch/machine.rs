//! The machine that reads a pickle without running anything.

use std::collections::HashMap;

use tch::Kind;

use super::globals::Global;
use super::opcodes::name_of;
use super::{TensorRef, Value};

/// Most values in one pickle. A checkpoint has some dozens per tensor.
const MAX_VALUES: usize = 1 << 22;
/// Deepest nesting. A checkpoint has five levels.
const MAX_DEPTH: usize = 24;

/// A node's number.
pub(super) type Id = u32;

/// A value while the pickle is read. Containers refer to their members by number, because pickles share values.
#[derive(Debug, Clone)]
pub(super) enum Node {
    /// None, a number, text or bytes.
    Plain(Value<TensorRef>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict {
        items: Vec<(Id, Id)>,
        ordered: bool,
        attributes: Option<Id>,
    },
    Global(Global),
    Storage {
        key: String,
        kind: Kind,
        stored: i64,
    },
    Tensor(TensorRef),
    /// A NumPy number type, such as `f8`.
    NumpyType {
        code: String,
        big_endian: bool,
    },
}

/// Reads a pickle.
///
/// # Errors
/// The reason of the refusal, which completes "is not a usable PyTorch checkpoint: ".
pub(super) fn read(bytes: &[u8]) -> Result<Value<TensorRef>, String> {
    let mut machine =
        Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let root = machine.run()?;
    // Shared values are copied: the budget keeps a small file from describing a huge tree.
    let mut budget = bytes.len().saturating_mul(64).saturating_add(1 << 20);
    machine.tree(root, 0, &mut budget)
}

/// The machine's state.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    pub(super) nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let taken = &self.bytes[self.at..end.ok_or("the pickle ends in the middle of a value")?];
        self.at += n;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N)?.try_into().map_err(|_| "the pickle ends in the middle of a number".to_owned())
    }

    fn text(&mut self, n: usize) -> Result<String, String> {
        let bytes = self.take(n)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a text in the pickle is not UTF-8".to_owned())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().position(|&b| b == b'\n').ok_or("the pickle ends in the middle of a name")?;
        self.at += n + 1;
        std::str::from_utf8(&rest[..n]).map_err(|_| "a name in the pickle is not UTF-8".to_owned())
    }

    pub(super) fn push(&mut self, node: Node) -> Result<(), String> {
        if self.nodes.len() >= MAX_VALUES {
            return Err(format!("its pickle has more than {MAX_VALUES} values"));
        }
        self.stack.push(self.nodes.len() as Id);
        self.nodes.push(node);
        Ok(())
    }

    fn plain(&mut self, value: Value<TensorRef>) -> Result<(), String> {
        self.push(Node::Plain(value))
    }

    /// The topmost value, which must lie above the last mark.
    pub(super) fn pop(&mut self) -> Result<Id, String> {
        match self.stack.len() > self.marks.last().copied().unwrap_or(0) {
            true => self.stack.pop().ok_or_else(|| UNDERFLOW.to_owned()),
            false => Err(UNDERFLOW.to_owned()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or(UNDERFLOW)?;
        Ok(self.stack.split_off(mark))
    }

    pub(super) fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| UNDERFLOW.to_owned())
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    fn remember(&mut self, key: u32) -> Result<(), String> {
        let id = self.top()?;
        self.memo.insert(key, id);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), String> {
        let id = self.memo.get(&key).ok_or_else(|| format!("the pickle recalls entry {key}, which it never stored"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn run(&mut self) -> Result<Id, String> {
        loop {
            let code = self.take(1)?[0];
            if code == b'.' {
                return self.pop();
            }
            if !(self.literal(code)? || self.container(code)? || self.memory(code)? || self.object(code)?) {
                return Err(match name_of(code) {
                    Some(name) => format!(
                        "its pickle uses the opcode {name}, which no plain checkpoint needs; nothing of it was run"
                    ),
                    None => format!("its pickle has the byte {code:#04x} where an opcode should be"),
                });
            }
        }
    }

    /// Opcodes of numbers, text and bytes, and of the pickle's frame. Returns whether `code` is one.
    fn literal(&mut self, code: u8) -> Result<bool, String> {
        match code {
            0x80 => {
                let protocol = self.take(1)?[0];
                if !(2..=5).contains(&protocol) {
                    return Err(format!("its pickle has protocol {protocol}; 2 to 5 are known"));
                }
            }
            0x95 => _ = self.number::<8>()?,
            b'N' => self.plain(Value::None)?,
            0x88 => self.plain(Value::Bool(true))?,
            0x89 => self.plain(Value::Bool(false))?,
            b'J' => {
                let i = i32::from_le_bytes(self.number()?);
                self.plain(Value::Int(i.into()))?;
            }
            b'K' => {
                let i = self.take(1)?[0];
                self.plain(Value::Int(i.into()))?;
            }
            b'M' => {
                let i = u16::from_le_bytes(self.number()?);
                self.plain(Value::Int(i.into()))?;
            }
            0x8a => self.long()?,
            b'G' => {
                let x = f64::from_be_bytes(self.number()?);
                self.plain(Value::Float(x))?;
            }
            b'X' | 0x8c => {
                let n = self.length(code == b'X')?;
                let text = self.text(n)?;
                self.plain(Value::Str(text))?;
            }
            b'B' | b'C' => {
                let n = self.length(code == b'B')?;
                let bytes = self.take(n)?.to_vec();
                self.plain(Value::Bytes(bytes))?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// A length in four bytes or in one.
    fn length(&mut self, long: bool) -> Result<usize, String> {
        Ok(if long { u32::from_le_bytes(self.number()?) as usize } else { self.take(1)?[0].into() })
    }

    /// Opcodes of lists, tuples and dictionaries. Returns whether `code` is one.
    fn container(&mut self, code: u8) -> Result<bool, String> {
        match code {
            b'}' => self.push(Node::Dict { items: Vec::new(), ordered: false, attributes: None })?,
            b']' => self.push(Node::List(Vec::new()))?,
            b')' => self.push(Node::Tuple(Vec::new()))?,
            b'(' => self.marks.push(self.stack.len()),
            b't' => {
                let members = self.pop_to_mark()?;
                self.push(Node::Tuple(members))?;
            }
            0x85..=0x87 => {
                let mut members = (0x85..=code).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                members.reverse();
                self.push(Node::Tuple(members))?;
            }
            b'a' => {
                let member = self.pop()?;
                self.append(vec![member])?;
            }
            b'e' => {
                let members = self.pop_to_mark()?;
                self.append(members)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let flat = self.pop_to_mark()?;
                self.set_items(flat)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Opcodes that store values under a number and recall them. Returns whether `code` is one.
    fn memory(&mut self, code: u8) -> Result<bool, String> {
        match code {
            b'q' => {
                let key = self.take(1)?[0];
                self.remember(key.into())?;
            }
            b'r' => {
                let key = u32::from_le_bytes(self.number()?);
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'h' => {
                let key = self.take(1)?[0];
                self.recall(key.into())?;
            }
            b'j' => {
                let key = u32::from_le_bytes(self.number()?);
                self.recall(key)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Opcodes of globals and objects. Returns whether `code` is one.
    fn object(&mut self, code: u8) -> Result<bool, String> {
        match code {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Node::Global(Global::named(module, name)?))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let found = match (self.node(module), self.node(name)) {
                    (Node::Plain(Value::Str(module)), Node::Plain(Value::Str(name))) => Global::named(module, name)?,
                    _ => return Err("STACK_GLOBAL names no global".into()),
                };
                self.push(Node::Global(found))?;
            }
            b'Q' => self.storage()?,
            b'R' => self.reduce()?,
            b'b' => self.build()?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn long(&mut self) -> Result<(), String> {
        let n = usize::from(self.take(1)?[0]);
        let bytes = self.take(n)?;
        if n > 8 {
            return Err("it has a whole number of more than 64 bits".into());
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..n].copy_from_slice(bytes);
        self.plain(Value::Int(i64::from_le_bytes(wide)))
    }

    fn append(&mut self, members: Vec<Id>) -> Result<(), String> {
        let list = self.top()?;
        match &mut self.nodes[list as usize] {
            Node::List(list) => list.extend(members),
            _ => return Err("it appends to something that is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, flat: Vec<Id>) -> Result<(), String> {
        let dict = self.top()?;
        match &mut self.nodes[dict as usize] {
            Node::Dict { items, .. } if flat.len().is_multiple_of(2) => {
                items.extend(flat.chunks(2).map(|pair| (pair[0], pair[1])))
            }
            Node::Dict { .. } => return Err("a key has no value".into()),
            _ => return Err("it sets an item of something that is no dictionary".into()),
        }
        Ok(())
    }

    /// The tree of values at a node. Cycles exceed the depth.
    fn tree(&self, id: Id, depth: usize, budget: &mut usize) -> Result<Value<TensorRef>, String> {
        let node = self.node(id);
        let cost = match node {
            Node::Plain(Value::Str(text)) => text.len(),
            Node::Plain(Value::Bytes(bytes)) => bytes.len(),
            Node::Tensor(t) => 16 * t.shape.len() + t.storage.len(),
            _ => 0,
        };
        *budget = budget.checked_sub(16 + cost).ok_or("its pickle repeats values until they fill the memory")?;
        if depth > MAX_DEPTH {
            return Err(format!("its values are nested deeper than {MAX_DEPTH} levels"));
        }
        let mut below = |id: Id| self.tree(id, depth + 1, budget);
        Ok(match node {
            Node::Plain(value) => value.clone(),
            Node::Tensor(t) => Value::Tensor(t.clone()),
            Node::List(members) => Value::List(members.iter().map(|&i| below(i)).collect::<Result<_, _>>()?),
            Node::Tuple(members) => Value::Tuple(members.iter().map(|&i| below(i)).collect::<Result<_, _>>()?),
            Node::Dict { items, ordered, attributes } => {
                let items =
                    items.iter().map(|&(k, v)| Ok((below(k)?, below(v)?))).collect::<Result<Vec<_>, String>>()?;
                let attributes = attributes.map(below).transpose()?;
                match (ordered, attributes) {
                    (false, _) => Value::Dict(items),
                    (true, Some(Value::Dict(attributes))) => Value::OrderedDict { items, attributes },
                    (true, None) => Value::OrderedDict { items, attributes: Vec::new() },
                    (true, Some(_)) => return Err("BUILD sets a state that is no plain dict".into()),
                }
            }
            Node::Global(global) => return Err(format!("{global:?} is in the place of a value")),
            Node::Storage { .. } => return Err("a storage is in the place of a tensor".into()),
            Node::NumpyType { .. } => return Err("a NumPy type is in the place of a value".into()),
        })
    }
}

const UNDERFLOW: &str = "the pickle takes more values than it has";

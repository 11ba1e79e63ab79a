//! The machine that reads a pickle without running anything.

use std::collections::HashMap;

use tch::Kind;

use super::Value;
use super::file::storage_kind;
use super::opcodes::name_of;

/// Most values in one pickle. A checkpoint has some dozens a tensor.
const MAX_VALUES: usize = 1 << 22;
/// Deepest nesting. A checkpoint has five levels.
const MAX_DEPTH: usize = 24;
/// Most dimensions of a tensor.
const MAX_DIMS: usize = 16;

/// Where a tensor lies in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef {
    pub(super) storage: String,
    /// Numbers in the storage.
    pub(super) stored: i64,
    pub(super) kind: Kind,
    /// In numbers, from the beginning of the storage.
    pub(super) offset: i64,
    pub(super) shape: Vec<i64>,
    pub(super) stride: Vec<i64>,
}

impl TensorRef {
    /// Its shape.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Its kind of numbers.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How many numbers it has; fits, since it was held against its storage.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }

    /// Numbers of the storage from the tensor's first to its last.
    pub(super) fn extent(&self) -> i64 {
        if self.numel() == 0 {
            return 0;
        }
        1 + self.shape.iter().zip(&self.stride).map(|(n, s)| (n - 1) * s).sum::<i64>()
    }

    pub(super) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.stride).rev().all(|(&n, &s)| {
            let fits = n == 1 || s == expected;
            expected *= n;
            fits
        })
    }

    /// Refuses a tensor that reaches out of its storage, or has more numbers than it.
    fn check(&self) -> Result<(), String> {
        let fits = || -> Option<bool> {
            let (mut last, mut numel) = (self.offset, 1i64);
            for (&n, &s) in self.shape.iter().zip(&self.stride) {
                if n < 0 || s < 0 {
                    return None;
                }
                numel = numel.checked_mul(n)?;
                last = last.checked_add((n - 1).max(0).checked_mul(s)?)?;
            }
            Some(self.offset >= 0 && numel <= self.stored && (numel == 0 || last < self.stored))
        };
        match self.shape.len() == self.stride.len() && self.shape.len() <= MAX_DIMS && fits() == Some(true) {
            true => Ok(()),
            false => Err(format!(
                "a tensor of shape {:?}, strides {:?} and offset {} does not lie in its storage `{}` of {} numbers",
                self.shape, self.stride, self.offset, self.storage, self.stored
            )),
        }
    }
}

/// The globals that a checkpoint may name. None of them is called: each stands for something that is built here.
#[derive(Debug, Clone, Copy)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Storage(Kind),
}

fn global(module: &str, name: &str) -> Result<Global, String> {
    if let ("torch", Some(kind)) = (module, storage_kind(name)) {
        return Ok(Global::Storage(kind));
    }
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", "Size") => Global::Size,
        _ => {
            return Err(format!(
                "it asks for `{}.{}`, which is not among the tensors and plain containers that are read here; nothing of it was run",
                shown(module),
                shown(name)
            ));
        }
    })
}

/// Text from the file in a message: short, without control characters.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

type Id = u32;

#[derive(Debug, Clone)]
enum Node {
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
}

/// Reads a pickle.
///
/// # Errors
/// What is refused and why, in words that follow "is not usable: ".
pub(super) fn read(bytes: &[u8]) -> Result<Value<TensorRef>, String> {
    let mut machine =
        Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    let root = machine.run()?;
    // Shared values are written out: the budget keeps a small file from describing a huge tree.
    let mut budget = bytes.len().saturating_mul(64).saturating_add(1 << 20);
    machine.tree(root, 0, &mut budget)
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
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

    fn push(&mut self, node: Node) -> Result<(), String> {
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
    fn pop(&mut self) -> Result<Id, String> {
        match self.stack.len() > self.marks.last().copied().unwrap_or(0) {
            true => self.stack.pop().ok_or_else(|| UNDERFLOW.to_owned()),
            false => Err(UNDERFLOW.to_owned()),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or(UNDERFLOW)?;
        Ok(self.stack.split_off(mark))
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| UNDERFLOW.to_owned())
    }

    fn node(&self, id: Id) -> &Node {
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
                b'X' => {
                    let n = u32::from_le_bytes(self.number()?);
                    let text = self.text(n as usize)?;
                    self.plain(Value::Str(text))?;
                }
                0x8c => {
                    let n = self.take(1)?[0];
                    let text = self.text(n.into())?;
                    self.plain(Value::Str(text))?;
                }
                b'B' => {
                    let n = u32::from_le_bytes(self.number()?);
                    let bytes = self.take(n as usize)?.to_vec();
                    self.plain(Value::Bytes(bytes))?;
                }
                b'C' => {
                    let n = self.take(1)?[0];
                    let bytes = self.take(n.into())?.to_vec();
                    self.plain(Value::Bytes(bytes))?;
                }
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
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.push(Node::Global(global(module, name)?))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let found = match (self.node(module), self.node(name)) {
                        (Node::Plain(Value::Str(module)), Node::Plain(Value::Str(name))) => global(module, name)?,
                        _ => return Err("STACK_GLOBAL names no global".into()),
                    };
                    self.push(Node::Global(found))?;
                }
                b'Q' => self.storage()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                b'.' => return self.pop(),
                _ => {
                    return Err(match name_of(code) {
                        Some(name) => format!(
                            "its pickle uses the opcode {name}, which no plain checkpoint needs; nothing of it was run"
                        ),
                        None => format!("its pickle has the byte {code:#04x} where an opcode should be"),
                    });
                }
            }
        }
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

    fn members(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(members) | Node::List(members) => Some(members),
            _ => None,
        }
    }

    fn int(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Plain(Value::Int(i)) => Some(*i),
            _ => None,
        }
    }

    fn sizes(&self, id: Id) -> Option<Vec<i64>> {
        self.members(id).filter(|m| m.len() <= MAX_DIMS)?.iter().map(|&i| self.int(i)).collect()
    }

    /// `("storage", torch.FloatStorage, "0", "cpu", 192)`.
    fn storage(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let parts = self.members(id).and_then(|members| match members {
            [tag, class, key, _, stored] => match (self.node(*tag), self.node(*class), self.node(*key)) {
                (Node::Plain(Value::Str(tag)), Node::Global(Global::Storage(kind)), Node::Plain(Value::Str(key)))
                    if tag == "storage" =>
                {
                    Some((key.clone(), *kind, self.int(*stored)?))
                }
                _ => None,
            },
            _ => None,
        });
        let (key, kind, stored) = parts.ok_or("it refers to something that is no storage of a tensor")?;
        self.push(Node::Storage { key, kind, stored })
    }

    fn reduce(&mut self) -> Result<(), String> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let Node::Global(callee) = *self.node(callee) else {
            return Err("REDUCE calls something that is no global".into());
        };
        let arguments = self.members(arguments).ok_or("REDUCE has no arguments")?.to_vec();
        let wrong = || format!("{callee:?} has arguments that cannot be its own");
        let node = match (callee, &arguments[..]) {
            (Global::OrderedDict, []) => Node::Dict { items: Vec::new(), ordered: true, attributes: None },
            (Global::OrderedDict, [pairs]) => {
                let pair = |&id: &Id| match self.members(id) {
                    Some([key, value]) => Some((*key, *value)),
                    _ => None,
                };
                let items = self.members(*pairs).and_then(|p| p.iter().map(pair).collect()).ok_or_else(wrong)?;
                Node::Dict { items, ordered: true, attributes: None }
            }
            (Global::RebuildTensor, [storage, offset, shape, stride, _, hooks]) => {
                self.tensor(*storage, *offset, *shape, *stride, *hooks)?
            }
            (Global::RebuildParameter, [data, _, _]) => match self.node(*data) {
                Node::Tensor(t) => Node::Tensor(t.clone()),
                _ => return Err(wrong()),
            },
            (Global::Size, [sizes]) => Node::Tuple(self.members(*sizes).ok_or_else(wrong)?.to_vec()),
            _ => return Err(wrong()),
        };
        self.push(node)
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, stride: Id, hooks: Id) -> Result<Node, String> {
        let Node::Storage { key, kind, stored } = self.node(storage) else {
            return Err("a tensor has no storage".into());
        };
        if !matches!(self.node(hooks), Node::Dict { items, .. } if items.is_empty()) {
            return Err("a tensor has hooks, which would be code".into());
        }
        let parts = (|| Some((self.int(offset)?, self.sizes(shape)?, self.sizes(stride)?)))();
        let (offset, shape, stride) = parts.ok_or("a tensor's offset, shape or strides are no whole numbers")?;
        let tensor = TensorRef { storage: key.clone(), stored: *stored, kind: *kind, offset, shape, stride };
        tensor.check()?;
        Ok(Node::Tensor(tensor))
    }

    /// Attributes beside the items of an OrderedDict; of anything else they would be an object's state.
    fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        let is_dict = matches!(self.node(state), Node::Dict { .. });
        let target = self.top()?;
        match &mut self.nodes[target as usize] {
            Node::Dict { ordered: true, attributes, .. } if is_dict => *attributes = Some(state),
            _ => return Err("BUILD sets the state of something that is no OrderedDict".into()),
        }
        Ok(())
    }

    /// Writes the tree below a node out; cycles end at the depth.
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
            Node::Global(global) => return Err(format!("{global:?} stands where a value should be")),
            Node::Storage { .. } => return Err("a storage stands where a tensor should be".into()),
        })
    }
}

const UNDERFLOW: &str = "the pickle takes more values than it has";

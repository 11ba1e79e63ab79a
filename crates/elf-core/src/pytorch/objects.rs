//! Objects of a pickle: what calls of globals stand for.

use super::Value;
use super::globals::Global;
use super::machine::{Id, Machine, Node};
use super::tensor_ref::{MAX_DIMS, TensorRef};

impl Machine<'_> {
    fn members(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(members) | Node::List(members) => Some(members),
            _ => None,
        }
    }

    fn string(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Plain(Value::Str(text)) => Some(text),
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
    pub(super) fn storage(&mut self) -> Result<(), String> {
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

    pub(super) fn reduce(&mut self) -> Result<(), String> {
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
            (Global::RebuildTensor, &[storage, offset, shape, stride, _, hooks]) => {
                self.tensor(storage, offset, shape, stride, hooks)?
            }
            (Global::RebuildParameter, [data, _, _]) => match self.node(*data) {
                Node::Tensor(t) => Node::Tensor(t.clone()),
                _ => return Err(wrong()),
            },
            (Global::Size, [sizes]) => Node::Tuple(self.members(*sizes).ok_or_else(wrong)?.to_vec()),
            (Global::Encode, [text, encoding]) if self.string(*encoding) == Some("latin1") => {
                let bytes = self.string(*text).and_then(|text| text.chars().map(|c| u8::try_from(c).ok()).collect());
                Node::Plain(Value::Bytes(bytes.ok_or_else(wrong)?))
            }
            (Global::NumpyType, [code, ..]) => {
                Node::NumpyType { code: self.string(*code).ok_or_else(wrong)?.to_owned(), big_endian: false }
            }
            (Global::NumpyScalar, [kind, bytes]) => match (self.node(*kind), self.node(*bytes)) {
                (Node::NumpyType { code, big_endian }, Node::Plain(Value::Bytes(bytes))) => {
                    Node::Plain(numpy_scalar(code, *big_endian, bytes)?)
                }
                _ => return Err(wrong()),
            },
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

    /// Sets the attributes of an OrderedDict, or the byte order of a NumPy type; the state of any other object is refused.
    pub(super) fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        let is_dict = matches!(self.node(state), Node::Dict { .. });
        let order = self.members(state).and_then(|members| self.string(*members.get(1)?)).map(str::to_owned);
        let target = self.top()?;
        match &mut self.nodes[target as usize] {
            Node::Dict { ordered: true, attributes, .. } if is_dict => *attributes = Some(state),
            Node::NumpyType { big_endian, .. } if order.is_some() => *big_endian = order.as_deref() == Some(">"),
            _ => return Err("BUILD sets the state of something that is no OrderedDict".into()),
        }
        Ok(())
    }
}

/// The number in a NumPy scalar of the type `code`, such as `f8`.
fn numpy_scalar(code: &str, big_endian: bool, bytes: &[u8]) -> Result<Value<TensorRef>, String> {
    let mut little = bytes.to_vec();
    if big_endian {
        little.reverse();
    }
    let value = match (code, little.as_slice()) {
        ("f8", &[a, b, c, d, e, f, g, h]) => Some(Value::Float(f64::from_le_bytes([a, b, c, d, e, f, g, h]))),
        ("f4", &[a, b, c, d]) => Some(Value::Float(f32::from_le_bytes([a, b, c, d]).into())),
        ("b1", &[a]) => Some(Value::Bool(a != 0)),
        ("i8" | "u8", &[a, b, c, d, e, f, g, h]) => {
            let i = i64::from_le_bytes([a, b, c, d, e, f, g, h]);
            (code == "i8" || i >= 0).then_some(Value::Int(i))
        }
        ("i4", &[a, b, c, d]) => Some(Value::Int(i32::from_le_bytes([a, b, c, d]).into())),
        ("u4", &[a, b, c, d]) => Some(Value::Int(u32::from_le_bytes([a, b, c, d]).into())),
        ("i2", &[a, b]) => Some(Value::Int(i16::from_le_bytes([a, b]).into())),
        ("u2", &[a, b]) => Some(Value::Int(u16::from_le_bytes([a, b]).into())),
        ("i1", &[a]) => Some(Value::Int((a as i8).into())),
        ("u1", &[a]) => Some(Value::Int(a.into())),
        _ => None,
    };
    value.ok_or_else(|| format!("it has a NumPy number of type `{}`, which is not read here", code.escape_default()))
}

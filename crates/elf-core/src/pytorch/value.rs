//! The tree that a checkpoint holds.

use serde::{Deserialize, Serialize};

/// A value in a checkpoint; `T` stands for its tensors: where they lie in a file, or the tensors themselves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Value<T> {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// Text.
    Str(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Value<T>>),
    /// A tuple.
    Tuple(Vec<Value<T>>),
    /// A `dict`, in its order.
    Dict(Vec<(Value<T>, Value<T>)>),
    /// An `OrderedDict`, in its order.
    OrderedDict {
        /// Keys and values.
        items: Vec<(Value<T>, Value<T>)>,
        /// What is stored beside them: a module's `_metadata`.
        attributes: Vec<(Value<T>, Value<T>)>,
    },
    /// A tensor.
    Tensor(T),
}

impl<T> Value<T> {
    /// Keys and values of either kind of dictionary.
    pub fn items(&self) -> Option<&[(Value<T>, Value<T>)]> {
        match self {
            Self::Dict(items) | Self::OrderedDict { items, .. } => Some(items),
            _ => None,
        }
    }

    /// The value of a text key of a dictionary; of equal keys the last, as in Python.
    pub fn get(&self, key: &str) -> Option<&Value<T>> {
        self.items()?.iter().rev().find(|(k, _)| k.as_str() == Some(key)).map(|(_, v)| v)
    }

    /// The value of a whole-number key of a dictionary.
    pub fn at(&self, key: i64) -> Option<&Value<T>> {
        self.items()?.iter().rev().find(|(k, _)| matches!(k, Self::Int(i) if *i == key)).map(|(_, v)| v)
    }

    /// Text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(i) => Some(*i),
            _ => None,
        }
    }

    /// A number of either kind.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Int(i) => Some(*i as f64),
            Self::Float(x) => Some(*x),
            _ => None,
        }
    }

    /// A tensor.
    pub fn as_tensor(&self) -> Option<&T> {
        match self {
            Self::Tensor(t) => Some(t),
            _ => None,
        }
    }

    /// The members of a list or a tuple.
    pub fn members(&self) -> Option<&[Value<T>]> {
        match self {
            Self::List(members) | Self::Tuple(members) => Some(members),
            _ => None,
        }
    }

    /// What kind of value it is, in words.
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a bool",
            Self::Int(_) => "an int",
            Self::Float(_) => "a float",
            Self::Str(_) => "a str",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Dict(_) => "a dict",
            Self::OrderedDict { .. } => "an OrderedDict",
            Self::Tensor(_) => "a tensor",
        }
    }

    /// The same tree with other tensors. `f` is called with each tensor's path: the keys down to it, joined by `/`.
    ///
    /// # Errors
    /// The first of `f`.
    pub fn map_tensors<U, E>(&self, f: &mut impl FnMut(&str, &T) -> Result<U, E>) -> Result<Value<U>, E> {
        self.map_at("", f)
    }

    fn map_at<U, E>(&self, path: &str, f: &mut impl FnMut(&str, &T) -> Result<U, E>) -> Result<Value<U>, E> {
        let below = |key: String| if path.is_empty() { key } else { format!("{path}/{key}") };
        let mut members = |members: &[Value<T>]| -> Result<Vec<Value<U>>, E> {
            members.iter().enumerate().map(|(i, v)| v.map_at(&below(i.to_string()), f)).collect()
        };
        Ok(match self {
            Self::None => Value::None,
            Self::Bool(b) => Value::Bool(*b),
            Self::Int(i) => Value::Int(*i),
            Self::Float(x) => Value::Float(*x),
            Self::Str(text) => Value::Str(text.clone()),
            Self::Bytes(bytes) => Value::Bytes(bytes.clone()),
            Self::List(list) => Value::List(members(list)?),
            Self::Tuple(tuple) => Value::Tuple(members(tuple)?),
            Self::Dict(items) => Value::Dict(map_items(items, path, f)?),
            Self::OrderedDict { items, attributes } => Value::OrderedDict {
                items: map_items(items, path, f)?,
                attributes: map_items(attributes, &below("__dict__".into()), f)?,
            },
            Self::Tensor(t) => Value::Tensor(f(path, t)?),
        })
    }
}

type Items<T> = Vec<(Value<T>, Value<T>)>;

fn map_items<T, U, E>(
    items: &[(Value<T>, Value<T>)],
    path: &str,
    f: &mut impl FnMut(&str, &T) -> Result<U, E>,
) -> Result<Items<U>, E> {
    let mut mapped = Vec::with_capacity(items.len());
    for (i, (key, value)) in items.iter().enumerate() {
        let name = match key {
            Value::Str(text) => text.clone(),
            Value::Int(i) => i.to_string(),
            _ => format!("[{i}]"),
        };
        let below = if path.is_empty() { name } else { format!("{path}/{name}") };
        mapped.push((key.map_at(&format!("{below}/key"), f)?, value.map_at(&below, f)?));
    }
    Ok(mapped)
}

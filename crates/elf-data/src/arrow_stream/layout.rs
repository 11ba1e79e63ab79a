//! The nodes and buffers of a record batch that belong to the columns in use.

use arrow::ipc::{Field, Int, MetadataVersion, Schema, Type, UnionMode};

use super::column::{Integer, Lengths};
use crate::example::{INDEX, INPUT_TEXT, TARGET_TEXT};
use crate::shards::{CONDITION_INPUT_IDS, INPUT_IDS};

/// Where a column begins in a record batch's lists of nodes and of buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) node: usize,
    pub(super) buffer: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct ListColumn {
    pub(super) place: Place,
    pub(super) lengths: Lengths,
    pub(super) integer: Integer,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct IntegerColumn {
    pub(super) place: Place,
    pub(super) integer: Integer,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct TextColumn {
    pub(super) place: Place,
    pub(super) lengths: Lengths,
    /// The dictionary's number and the type of its indices, for a dictionary-encoded column.
    pub(super) dictionary: Option<(i64, Integer)>,
}

/// The columns of a schema that are in use.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) input: ListColumn,
    pub(super) condition: Option<ListColumn>,
    pub(super) index: Option<IntegerColumn>,
    pub(super) input_text: Option<TextColumn>,
    pub(super) target_text: Option<TextColumn>,
}

/// Why a schema cannot be used.
#[derive(Debug)]
pub(super) enum LayoutError {
    MissingInput { present: Vec<String> },
    WrongType { column: String, found: String },
    Unsupported { column: String, found: String },
    Damaged(&'static str),
}

impl Layout {
    pub(super) fn of(schema: Schema<'_>, version: MetadataVersion) -> Result<Self, LayoutError> {
        let fields = schema.fields().ok_or(LayoutError::Damaged("its schema has no fields"))?;
        let (mut input, mut condition, mut index, mut input_text, mut target_text) = (None, None, None, None, None);
        let mut present = Vec::new();
        let mut place = Place { node: 0, buffer: 0 };
        for field in fields {
            let name = field.name().unwrap_or_default();
            // The first of several columns of one name is taken, as Arrow does.
            match name {
                INPUT_IDS if input.is_none() => input = Some(ListColumn::of(field, place)?),
                CONDITION_INPUT_IDS if condition.is_none() => condition = Some(ListColumn::of(field, place)?),
                INDEX if index.is_none() => index = IntegerColumn::of(field, place),
                INPUT_TEXT if input_text.is_none() => input_text = TextColumn::of(field, place),
                TARGET_TEXT if target_text.is_none() => target_text = TextColumn::of(field, place),
                _ => {}
            }
            pass(field, version, &mut place)
                .ok_or_else(|| LayoutError::Unsupported { column: name.to_owned(), found: describe(field) })?;
            present.push(name.to_owned());
        }
        let input = input.ok_or(LayoutError::MissingInput { present })?;
        Ok(Self { input, condition, index, input_text, target_text })
    }

    /// How the strings of dictionary `id` are separated; `None` if no column in use needs it.
    pub(super) fn dictionary(&self, id: i64) -> Option<Lengths> {
        let texts = [&self.input_text, &self.target_text].into_iter().flatten();
        texts.filter(|text| text.dictionary.is_some_and(|(of, _)| of == id)).map(|text| text.lengths).next()
    }
}

impl ListColumn {
    fn of(field: Field<'_>, place: Place) -> Result<Self, LayoutError> {
        let found = || -> Option<Self> {
            if field.dictionary().is_some() {
                return None;
            }
            let lengths = match field.type_type() {
                Type::List => Lengths::Offsets { width: 4 },
                Type::LargeList => Lengths::Offsets { width: 8 },
                Type::FixedSizeList => {
                    let size = field.type_as_fixed_size_list()?.listSize();
                    Lengths::Fixed(usize::try_from(size).ok().filter(|&size| size > 0)?)
                }
                _ => return None,
            };
            let child = field.children().filter(|children| children.len() == 1)?.get(0);
            if child.dictionary().is_some() || child.type_type() != Type::Int {
                return None;
            }
            Some(Self { place, lengths, integer: integer(child.type_as_int()?)? })
        };
        found().ok_or_else(|| LayoutError::WrongType {
            column: field.name().unwrap_or_default().to_owned(),
            found: describe(field),
        })
    }
}

impl IntegerColumn {
    fn of(field: Field<'_>, place: Place) -> Option<Self> {
        if field.dictionary().is_some() || field.type_type() != Type::Int {
            return None;
        }
        Some(Self { place, integer: integer(field.type_as_int()?)? })
    }
}

impl TextColumn {
    fn of(field: Field<'_>, place: Place) -> Option<Self> {
        let lengths = match field.type_type() {
            Type::Utf8 => Lengths::Offsets { width: 4 },
            Type::LargeUtf8 => Lengths::Offsets { width: 8 },
            _ => return None,
        };
        let dictionary = match field.dictionary() {
            None => None,
            // By the format, indices without a type have 32 bits.
            Some(d) => Some((d.id(), d.indexType().map_or(Some(Integer { width: 4, signed: true }), integer)?)),
        };
        Some(Self { place, lengths, dictionary })
    }
}

fn integer(int: Int<'_>) -> Option<Integer> {
    let width = match int.bitWidth() {
        8 => 1,
        16 => 2,
        32 => 4,
        64 => 8,
        _ => return None,
    };
    Some(Integer { width, signed: int.is_signed() })
}

/// Advances `place` past `field`; `None` if the number of its buffers cannot be known.
fn pass(field: Field<'_>, version: MetadataVersion, place: &mut Place) -> Option<()> {
    place.node += 1;
    if field.dictionary().is_some() {
        place.buffer += 2;
        return Some(());
    }
    place.buffer += match field.type_type() {
        Type::Null | Type::RunEndEncoded => 0,
        Type::Struct_ | Type::FixedSizeList => 1,
        Type::Int | Type::FloatingPoint | Type::Bool | Type::Decimal | Type::Date | Type::Time | Type::Timestamp => 2,
        Type::Interval | Type::Duration | Type::FixedSizeBinary | Type::List | Type::LargeList | Type::Map => 2,
        Type::Binary | Type::Utf8 | Type::LargeBinary | Type::LargeUtf8 | Type::ListView | Type::LargeListView => 3,
        Type::Union => {
            let dense = field.type_as_union()?.mode() == UnionMode::Dense;
            // Before version 5 unions had a validity bitmap.
            1 + usize::from(dense) + usize::from(version < MetadataVersion::V5)
        }
        // Views state their number of buffers in each batch.
        _ => return None,
    };
    let nested = matches!(
        field.type_type(),
        Type::Struct_
            | Type::FixedSizeList
            | Type::List
            | Type::LargeList
            | Type::Map
            | Type::ListView
            | Type::LargeListView
            | Type::RunEndEncoded
            | Type::Union
    );
    if nested {
        // The depth is bounded: the verification of the message refuses deep schemas.
        for child in field.children()? {
            pass(child, version, place)?;
        }
    }
    Some(())
}

/// A type in words, such as `List of Int`.
fn describe(field: Field<'_>) -> String {
    let own = field.type_type().variant_name().unwrap_or("an unknown type");
    let encoded = if field.dictionary().is_some() { "dictionary-encoded " } else { "" };
    let of = field.children().filter(|children| children.len() == 1).map(|children| {
        let child = children.get(0).type_type().variant_name().unwrap_or("an unknown type");
        format!(" of {child}")
    });
    format!("{encoded}{own}{}", of.unwrap_or_default())
}

//! Columns as ranges of bytes, and reading single values from them.

use std::ops::Range;

/// An integer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Integer {
    /// Bytes: 1, 2, 4 or 8.
    pub(super) width: usize,
    pub(super) signed: bool,
}

impl Integer {
    /// The integer that begins at byte `at`; `None` beyond the end. Unsigned values above 63 bits become `i64::MAX`.
    fn read(self, bytes: &[u8], at: usize) -> Option<i64> {
        let bytes = bytes.get(at..at.checked_add(self.width)?)?;
        Some(match (bytes, self.signed) {
            (&[a], true) => i64::from(a as i8),
            (&[a], false) => i64::from(a),
            (&[a, b], true) => i64::from(i16::from_le_bytes([a, b])),
            (&[a, b], false) => i64::from(u16::from_le_bytes([a, b])),
            (&[a, b, c, d], true) => i64::from(i32::from_le_bytes([a, b, c, d])),
            (&[a, b, c, d], false) => i64::from(u32::from_le_bytes([a, b, c, d])),
            (&[a, b, c, d, e, f, g, h], true) => i64::from_le_bytes([a, b, c, d, e, f, g, h]),
            (&[a, b, c, d, e, f, g, h], false) => {
                i64::try_from(u64::from_le_bytes([a, b, c, d, e, f, g, h])).unwrap_or(i64::MAX)
            }
            _ => return None,
        })
    }

    fn nth(self, bytes: &[u8], from: usize, i: usize) -> Option<i64> {
        self.read(bytes, from.checked_add(i.checked_mul(self.width)?)?)
    }
}

/// How a column separates its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lengths {
    /// Offsets of 4 bytes, or of 8 for "large" types.
    Offsets { width: usize },
    /// Every row has this many elements.
    Fixed(usize),
}

impl Lengths {
    /// The elements of row `i`, where the offsets begin at byte `offsets`; `None` if they are not within `elements`.
    fn range(self, bytes: &[u8], offsets: usize, elements: usize, i: usize) -> Option<Range<usize>> {
        let range = match self {
            Lengths::Offsets { width } => {
                let offset = Integer { width, signed: true };
                let [begin, end] = [offset.nth(bytes, offsets, i)?, offset.nth(bytes, offsets, i.checked_add(1)?)?];
                usize::try_from(begin).ok()?..usize::try_from(end).ok()?
            }
            Lengths::Fixed(size) => i.checked_mul(size)?..i.checked_add(1)?.checked_mul(size)?,
        };
        (range.start <= range.end && range.end <= elements).then_some(range)
    }
}

/// Why a row of ids cannot be read.
#[derive(Debug)]
pub(super) enum IdError {
    OutOfRange(i64),
    Damaged(&'static str),
}

/// Where a column of lists of integers lies in its file.
#[derive(Clone, Debug)]
pub(super) struct ListsAt {
    pub(super) lengths: Lengths,
    pub(super) integer: Integer,
    /// First byte of the offsets.
    pub(super) offsets: usize,
    /// First byte of the elements.
    pub(super) values: usize,
    /// Number of elements of all rows.
    pub(super) elements: usize,
}

impl ListsAt {
    /// Appends the ids of row `i` to `to`.
    pub(super) fn append(&self, file: &[u8], i: usize, vocab_size: usize, to: &mut Vec<i32>) -> Result<(), IdError> {
        const BEYOND: IdError = IdError::Damaged("points outside its column");
        let Self { lengths, integer, offsets, values, elements } = *self;
        let range = lengths.range(file, offsets, elements, i).ok_or(BEYOND)?;
        let at = |element: usize| values.checked_add(element.checked_mul(integer.width)?);
        let (Some(begin), Some(end)) = (at(range.start), at(range.end)) else { return Err(BEYOND) };
        let bytes = file.get(begin..end).ok_or(BEYOND)?;
        let bound = i64::try_from(vocab_size).unwrap_or(i64::MAX).min(i64::from(i32::MAX));
        let before = to.len();
        to.reserve(range.len());
        if integer == (Integer { width: 4, signed: true }) {
            // The most frequent type needs no conversion.
            let (words, _) = bytes.as_chunks::<4>();
            to.extend(words.iter().map(|&word| i32::from_le_bytes(word)));
            match to[before..].iter().find(|&&id| id < 0 || i64::from(id) >= bound) {
                Some(&id) => Err(IdError::OutOfRange(i64::from(id))),
                None => Ok(()),
            }
        } else {
            for element in 0..range.len() {
                let id = integer.nth(bytes, 0, element).ok_or(BEYOND)?;
                match i32::try_from(id) {
                    Ok(small) if small >= 0 && id < bound => to.push(small),
                    _ => return Err(IdError::OutOfRange(id)),
                }
            }
            Ok(())
        }
    }
}

/// Where a column of integers lies in its file.
#[derive(Clone, Debug)]
pub(super) struct IntegersAt {
    pub(super) integer: Integer,
    /// First byte of the validity bits; `None` if no row is null.
    pub(super) validity: Option<usize>,
    pub(super) values: usize,
}

impl IntegersAt {
    pub(super) fn get(&self, file: &[u8], i: usize) -> Option<i64> {
        if is_null(file, self.validity, i) { None } else { self.integer.nth(file, self.values, i) }
    }
}

/// Where strings lie in their file.
#[derive(Clone, Debug)]
pub(super) struct StringsAt {
    pub(super) lengths: Lengths,
    pub(super) len: usize,
    pub(super) validity: Option<usize>,
    pub(super) offsets: usize,
    pub(super) text: Range<usize>,
}

impl StringsAt {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// String `i`; `None` if it is null.
    pub(super) fn get<'a>(&self, file: &'a [u8], i: usize) -> Result<Option<&'a str>, &'static str> {
        if is_null(file, self.validity, i) {
            return Ok(None);
        }
        const BEYOND: &str = "has a text that lies outside its column";
        let range = self.lengths.range(file, self.offsets, self.text.len(), i).ok_or(BEYOND)?;
        let bytes = file.get(self.text.clone()).and_then(|text| text.get(range)).ok_or(BEYOND)?;
        std::str::from_utf8(bytes).map(Some).map_err(|_| "has a text that is not UTF-8")
    }
}

fn is_null(file: &[u8], validity: Option<usize>, i: usize) -> bool {
    let bit = |begin: usize| Some((*file.get(begin.checked_add(i / 8)?)? >> (i % 8)) & 1 == 0);
    validity.is_some_and(|begin| bit(begin).unwrap_or(true))
}

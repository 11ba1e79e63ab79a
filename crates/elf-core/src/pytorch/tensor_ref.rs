//! Tensors as a checkpoint describes them: places in storages of bytes.

use tch::Kind;

/// Most dimensions of a tensor.
pub(super) const MAX_DIMS: usize = 16;

/// The place of a tensor in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef {
    pub(super) storage: String,
    /// Number of elements of the storage.
    pub(super) stored: i64,
    pub(super) kind: Kind,
    /// In elements, from the beginning of the storage.
    pub(super) offset: i64,
    pub(super) shape: Vec<i64>,
    pub(super) stride: Vec<i64>,
}

impl TensorRef {
    /// Its shape.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// The kind of its elements.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of its elements; does not overflow, because it was compared with the storage's.
    pub fn numel(&self) -> i64 {
        self.shape.iter().product()
    }

    /// Number of the storage's elements from the tensor's first to its last.
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

    /// Refuses a tensor that reaches beyond its storage or has more elements than it.
    pub(super) fn check(&self) -> Result<(), String> {
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

/// PyTorch's storage classes and the kinds of their elements.
const STORAGES: [(Kind, &str); 10] = [
    (Kind::Float, "FloatStorage"),
    (Kind::Double, "DoubleStorage"),
    (Kind::Half, "HalfStorage"),
    (Kind::BFloat16, "BFloat16Storage"),
    (Kind::Int64, "LongStorage"),
    (Kind::Int, "IntStorage"),
    (Kind::Int16, "ShortStorage"),
    (Kind::Int8, "CharStorage"),
    (Kind::Uint8, "ByteStorage"),
    (Kind::Bool, "BoolStorage"),
];

/// PyTorch's storage class of a kind.
pub(super) fn storage_class(kind: Kind) -> Option<&'static str> {
    STORAGES.iter().find(|(of, _)| *of == kind).map(|(_, class)| *class)
}

/// The kind of elements in a storage class of PyTorch.
pub(super) fn storage_kind(class: &str) -> Option<Kind> {
    STORAGES.iter().find(|(_, name)| *name == class).map(|(kind, _)| *kind)
}

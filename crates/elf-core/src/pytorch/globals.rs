//! The globals that a checkpoint may name.

use tch::Kind;

use super::tensor_ref::storage_kind;

/// A global of a pickle. None of them is called: each stands for something that [`super::objects`] builds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Storage(Kind),
    /// `_codecs.encode`, by which pickles of protocol 2 write bytes.
    Encode,
    NumpyType,
    NumpyScalar,
}

impl Global {
    /// The global of a name.
    ///
    /// # Errors
    /// A refusal that names it.
    pub(super) fn named(module: &str, name: &str) -> Result<Self, String> {
        if let ("torch", Some(kind)) = (module, storage_kind(name)) {
            return Ok(Self::Storage(kind));
        }
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "Size") => Self::Size,
            ("_codecs", "encode") => Self::Encode,
            ("numpy", "dtype") => Self::NumpyType,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::NumpyScalar,
            _ => {
                return Err(format!(
                    "it asks for `{}.{}`, which is not among the tensors, numbers and plain containers that are read here; nothing of \
                     it was run. Save the weights alone with Python: torch.save({{\"state_dict\": model.state_dict()}}, path)",
                    shown(module),
                    shown(name)
                ));
            }
        })
    }
}

/// Text from the file, for a message: short, without control characters.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

//! PyTorch checkpoints (`torch.save`): a zip file with a pickle, which describes a tree of values, and one entry of bytes per storage.
//!
//! A pickle is a program. The machine that reads it here can only build plain containers, numbers, text and tensors: it refuses any
//! other opcode and any other global by name, and runs nothing. Every size in the file is compared with the file's length before
//! memory is allocated.

mod file;
mod globals;
mod machine;
mod objects;
mod opcodes;
mod tensor_ref;
mod value;
mod write;

pub use file::PyTorchFile;
pub use tensor_ref::TensorRef;
pub use value::Value;
pub use write::write;

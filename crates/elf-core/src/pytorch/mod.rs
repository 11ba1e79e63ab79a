//! PyTorch checkpoints (`torch.save`): a zip file with a pickle that describes a tree, and one entry of bytes a storage.
//!
//! A pickle is a program. Here it is read by a machine that can build plain containers, numbers, text and tensors and nothing
//! else: any other opcode, and any other global, is refused by name before anything is done with it. Every size in the file
//! is held against the file's real length before memory is asked for.

mod file;
mod machine;
mod opcodes;
mod value;
mod write;

pub use file::PyTorchFile;
pub use machine::TensorRef;
pub use value::Value;
pub use write::write;

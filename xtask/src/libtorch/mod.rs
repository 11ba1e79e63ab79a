//! libtorch, the library that all computing runs on: the folder that holds it, its download, and the set-up that links the
//! workspace to it.

pub mod fetch;
pub mod folder;
pub mod link;
pub mod setup;

pub use self::fetch::{CUDA_RUNTIME, Wheel, fetched_wheels};
pub use self::folder::{Libtorch, missing_libraries};
pub use self::setup::{LOADER_REMEDY, SetUp, setup};

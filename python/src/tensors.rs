//! Tensors between torch and the library, through DLPack: both sides use the same memory.

use dlpark::ffi::{DLDataType, DLDevice, DLDeviceType};
use dlpark::metadata::Dynamic;
use dlpark::python::consumer::{ImportedDlpack, from_dlpack};
use dlpark::tensor::TensorRef;
use dlpark::versioned;
use pyo3::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::errors;

/// The element types that tensors may have.
const TYPES: [(DLDataType, Kind); 8] = [
    (DLDataType::F32, Kind::Float),
    (DLDataType::F64, Kind::Double),
    (DLDataType::I64, Kind::Int64),
    (DLDataType::I32, Kind::Int),
    (DLDataType::I16, Kind::Int16),
    (DLDataType::I8, Kind::Int8),
    (DLDataType::U8, Kind::Uint8),
    (DLDataType::BOOL, Kind::Bool),
];

/// A tensor of Python's, in its own memory. It is kept alive, and must not be written, as long as this is.
pub struct Lent {
    tensor: Tensor,
    _owner: ImportedDlpack,
}

impl Lent {
    /// The memory of a `torch.Tensor`, or of any object with `__dlpack__`. `name` is that of the argument.
    ///
    /// # Errors
    /// If it is no such object, or of a type or device that libtorch does not share.
    pub fn new(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        if !object.hasattr("__dlpack__")? {
            let kind = object.get_type().name()?;
            return Err(errors::tensor(format!("{name} is of type {kind}: it has to be a torch.Tensor")));
        }
        // A tensor that is part of a graph of gradients is not lent by torch. The network computes none.
        let object = match object.hasattr("detach")? {
            true => object.call_method0("detach")?,
            false => object.clone(),
        };
        let refuse = |error: PyErr| errors::tensor(format!("{name} cannot be used: {}", error.value(py)));
        let owner = from_dlpack(object.as_borrowed(), None, None).map_err(refuse)?;
        let view = match &owner {
            ImportedDlpack::Legacy(managed) => managed.validate(),
            ImportedDlpack::Versioned(managed) => managed.validate(),
        };
        let view = view.map_err(|error| errors::tensor(format!("{name} cannot be used: {error}")))?;
        let tensor = borrowed(name, &view)?;
        Ok(Self { tensor, _owner: owner })
    }

    /// The tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }
}

/// A tensor in the memory that `view` describes.
fn borrowed(name: &str, view: &TensorRef<'_>) -> PyResult<Tensor> {
    let device = match view.device() {
        DLDevice { device_type: DLDeviceType::CPU, .. } => Device::Cpu,
        DLDevice { device_type: DLDeviceType::CUDA, device_id } => Device::Cuda(device_id.unsigned_abs() as usize),
        other => {
            let number = other.device_type.0;
            return Err(errors::tensor(format!(
                "{name} is on a device of another kind (number {number} of DLPack): move it to the model's, \"cpu\" or \"cuda\""
            )));
        }
    };
    let Some((_, kind)) = TYPES.iter().find(|(known, _)| *known == view.dtype()) else {
        let DLDataType { code, bits, .. } = view.dtype();
        return Err(errors::tensor(format!(
            "{name} has elements of another type ({bits} bits, code {code:?} of DLPack): convert it with `.float()`"
        )));
    };
    let refuse = |error: String| errors::tensor(format!("{name} cannot be used: {error}"));
    let strides = view.strides_or_compact().map_err(|error| refuse(error.to_string()))?;
    // SAFETY: the owner of the memory, which described it, is kept as long as the tensor.
    unsafe {
        let data = view.offset_bytes_ptr().map_err(|error| refuse(error.to_string()))?;
        match data.is_null() {
            true => Tensor::f_zeros(view.shape(), (*kind, device)),
            false => Tensor::f_from_blob(data, view.shape(), &strides, *kind, device),
        }
    }
    .map_err(|error| refuse(error.to_string()))
}

/// A tensor of the library as a `torch.Tensor`, which owns it from now on.
///
/// # Errors
/// If torch does not take it.
pub fn to_torch(py: Python<'_>, tensor: Tensor) -> PyResult<Py<PyAny>> {
    let fault = |error: &dyn std::fmt::Display| errors::tensor(format!("a result cannot be handed to torch: {error}"));
    let (kind, device) = (tensor.kind(), tensor.device());
    let dtype = TYPES.iter().find(|(_, known)| *known == kind).map(|(dtype, _)| *dtype);
    let dtype = dtype.ok_or_else(|| fault(&format!("elements of type {kind:?}")))?;
    let device = match device {
        Device::Cuda(number) => DLDevice::cuda(i32::try_from(number)?),
        _ => DLDevice::CPU,
    };
    let (shape, strides, data) = (tensor.size(), tensor.stride(), tensor.data_ptr());
    let mut made = Dynamic::new(shape, strides).initialize(Box::new(tensor)).map_err(|error| fault(&error))?;
    made.set_data(data).set_dtype(dtype).set_device(device);
    // SAFETY: the tensor, which is kept with the description, owns memory of this shape and type on this device.
    let made: versioned::Dlpack = unsafe { made.finish() };
    let capsule = made.into_pyobject(py)?;
    Ok(py.import("torch.utils.dlpack")?.call_method1("from_dlpack", (capsule,))?.unbind())
}

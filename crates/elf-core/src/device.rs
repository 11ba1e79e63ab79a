//! The choice of a device by name at run time, and features of the processor.

use std::str::FromStr;
use std::sync::OnceLock;

use tch::{Cuda, Device, Tensor};

use crate::{Error, Result};

/// The bytes of a tensor's elements on the host, in row-major order, as files store them.
///
/// # Errors
/// If libtorch fails.
pub fn host_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tch::no_grad(|| tensor.detach().f_to_device(Device::Cpu)?.f_contiguous())?;
    let mut bytes = vec![0; flat.numel() * flat.kind().elt_size_in_bytes()];
    flat.f_copy_data_u8(&mut bytes, flat.numel())?;
    Ok(bytes)
}

/// A requested device: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The first GPU, or the process's own among several.
    AnyCuda,
    /// A GPU by index.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let unknown = || Error::Device(format!("unknown device `{s}`: use auto, cpu, cuda or cuda:N"));
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::AnyCuda),
            _ => s.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(unknown),
        }
    }
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::AnyCuda => f.write_str("cuda"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl DeviceChoice {
    /// The choice of the process with number `local_rank` on a machine where it sees `visible` GPUs: without an index, each
    /// process has its own GPU. A process that sees only one was assigned it, for example by a batch system.
    pub fn of_local_rank(self, local_rank: usize, visible: usize) -> Self {
        match self {
            Self::Auto | Self::AnyCuda if visible == 1 => Self::Cuda(0),
            Self::Auto | Self::AnyCuda if visible > 1 => Self::Cuda(local_rank),
            asked => asked,
        }
    }

    /// The chosen device.
    ///
    /// # Errors
    /// If a GPU was requested and libtorch sees none with that index.
    pub fn resolve(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if cuda_devices() > 0 => Ok(Device::Cuda(0)),
            Self::Auto => Ok(Device::Cpu),
            Self::AnyCuda => Self::Cuda(0).resolve(),
            Self::Cuda(n) if n < cuda_devices() => Ok(Device::Cuda(n)),
            Self::Cuda(n) => Err(Error::Device(match cuda_library() {
                Err(why) => format!(
                    "cuda:{n} was asked for, but libtorch's CUDA part could not be loaded ({why}); use --device cpu, or run `cargo xtask doctor`"
                ),
                Ok(()) => format!(
                    "cuda:{n} was asked for, but libtorch sees {} GPU(s); run `nvidia-smi`, or use --device cpu",
                    cuda_devices()
                ),
            })),
        }
    }
}

/// Loads libtorch's CUDA part, which registers itself. Programs link only the CPU part.
///
/// libtorch looks for that part once, at the first call that concerns GPUs, such as seeding its generators: a device has to
/// be chosen before anything is drawn.
fn cuda_library() -> std::result::Result<(), String> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            #[cfg(unix)]
            {
                use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
                // SAFETY: libtorch_cuda is the sibling of the libtorch_cpu that is already running in this process;
                // its initialisers register kernels and do nothing else. It is never unloaded.
                let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
                let keep = |library| {
                    std::mem::forget(library);
                    elf_kernels::set_up_gpus();
                };
                library.map(keep).map_err(|e| e.to_string())
            }
            #[cfg(not(unix))]
            Err("only Linux is supported".to_string())
        })
        .clone()
}

/// Number of GPUs that libtorch can use; 0 without a driver or without libtorch's CUDA part.
pub fn cuda_devices() -> usize {
    // Machines without a driver skip loading half a gigabyte of kernels.
    let driver =
        std::path::Path::new("/proc/driver/nvidia").exists() || std::path::Path::new("/dev/nvidiactl").exists();
    if !driver || cuda_library().is_err() || !Cuda::is_available() {
        return 0;
    }
    usize::try_from(Cuda::device_count()).unwrap_or(0)
}

/// Bytes of memory that are free on a GPU, those of other processes not included; `None` if that cannot be told.
pub fn free_gpu_memory(gpu: usize) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::ffi::c_int;

        use libloading::os::unix::{Library, Symbol};
        cuda_library().ok()?;
        let loaded = Library::this();
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: the CUDA runtime that libtorch_cuda needs has these functions, with these signatures since its first version; they
        // write to the two numbers alone.
        unsafe {
            let set_device: Symbol<unsafe extern "C" fn(c_int) -> c_int> = loaded.get(b"cudaSetDevice").ok()?;
            let memory: Symbol<unsafe extern "C" fn(*mut usize, *mut usize) -> c_int> =
                loaded.get(b"cudaMemGetInfo").ok()?;
            let told = set_device(c_int::try_from(gpu).ok()?) == 0 && memory(&mut free, &mut total) == 0;
            told.then_some(free as u64)
        }
    }
    #[cfg(not(unix))]
    None
}

/// Number of numbers to hold at a time in a computation that is done in pieces: `on_cpu` on a CPU, whose cache should hold
/// them, and at least half a gigabyte of fp32 on a GPU, where each piece costs several launches and small ones leave most of
/// the device idle.
pub fn at_a_time(device: Device, on_cpu: i64) -> i64 {
    match elf_kernels::takes_gpu_path(device) {
        false => on_cpu,
        true => on_cpu.max(1 << 27),
    }
}

/// A tensor on `device`. Copies from the host to a GPU go through pinned memory, which libtorch keeps until the copy is
/// done, so that the host does not wait.
///
/// # Errors
/// If libtorch fails (out of memory).
pub fn upload(tensor: &Tensor, device: Device) -> Result<Tensor> {
    if tensor.device() != Device::Cpu || !matches!(device, Device::Cuda(_)) {
        return Ok(tensor.f_to_device(device)?);
    }
    // Not `pin_memory`, which warns when a device is named, as tch does.
    let pinned = tensor.f_internal_pin_memory(device)?;
    Ok(pinned.f_to_device_(device, pinned.kind(), true, false)?)
}

/// Waits until all work queued on `device` is done. A CPU has no queue.
pub fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

/// Features of the processor that determine the speed of matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuFeatures {
    /// Tile matrix unit with bf16 (Intel AMX).
    pub amx_bf16: bool,
    /// bf16 dot products in 512-bit vectors.
    pub avx512_bf16: bool,
    /// Dot products of 8-bit integers in vectors, summed exactly.
    pub vnni: bool,
    /// A processor of Intel, whose bf16 dot products in vectors are no faster than fp32 ones.
    pub intel: bool,
}

impl CpuFeatures {
    /// Whether bf16 matrix products are faster than fp32 ones. With AVX-512 bf16 alone that holds for AMD; on an Intel Xeon
    /// without access to its AMX they took 1.5 times as long.
    pub fn bf16_matmul(self) -> bool {
        self.amx_bf16 || (self.avx512_bf16 && !self.intel)
    }
}

/// The features of this processor.
pub fn cpu_features() -> CpuFeatures {
    #[cfg(target_arch = "x86_64")]
    {
        let (leaf0, leaf7) = (std::arch::x86_64::__cpuid(0), std::arch::x86_64::__cpuid_count(7, 0));
        CpuFeatures {
            amx_bf16: leaf7.edx & (1 << 22) != 0,
            avx512_bf16: std::arch::is_x86_feature_detected!("avx512bf16"),
            vnni: std::arch::is_x86_feature_detected!("avx512vnni") || std::arch::is_x86_feature_detected!("avxvnni"),
            // The vendor's name, four letters a register.
            intel: [leaf0.ebx, leaf0.edx, leaf0.ecx].map(u32::to_le_bytes).concat() == *b"GenuineIntel",
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    CpuFeatures { amx_bf16: false, avx512_bf16: false, vnni: false, intel: false }
}

/// One line that names the device, for logs and reports.
pub fn describe(device: Device) -> String {
    match device {
        Device::Cuda(n) => format!("cuda:{n}"),
        _ => {
            let f = cpu_features();
            let matrix = match (f.amx_bf16, f.avx512_bf16) {
                (true, _) => ", AMX bf16",
                (_, true) => ", AVX-512 bf16",
                _ => "",
            };
            format!("cpu ({} threads{matrix})", tch::get_num_threads())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_memory_is_told_of_a_gpu_that_is_not_there() {
        assert_eq!(free_gpu_memory(usize::MAX), None);
    }

    #[test]
    fn names_round_trip() {
        for name in ["auto", "cpu", "cuda", "cuda:0", "cuda:3"] {
            assert_eq!(name.parse::<DeviceChoice>().unwrap().to_string(), name);
        }
        let message = "gpu".parse::<DeviceChoice>().unwrap_err().to_string();
        assert!(message.contains("auto, cpu, cuda"), "{message}");
    }

    #[test]
    fn bf16_is_chosen_where_it_is_faster() {
        let features =
            |amx_bf16, avx512_bf16, intel| CpuFeatures { amx_bf16, avx512_bf16, vnni: false, intel }.bf16_matmul();
        assert!(features(true, true, true) && features(false, true, false));
        assert!(!features(false, true, true) && !features(false, false, false));
    }

    #[test]
    fn ranks_have_gpus_of_their_own_unless_one_is_named() {
        use DeviceChoice::{AnyCuda, Auto, Cpu, Cuda};
        for choice in [Auto, AnyCuda] {
            assert_eq!((choice.of_local_rank(0, 4), choice.of_local_rank(3, 4)), (Cuda(0), Cuda(3)));
            // More processes than GPUs: the index that is missing is named.
            assert_eq!(choice.of_local_rank(2, 2), Cuda(2));
            assert_eq!(choice.of_local_rank(3, 1), Cuda(0));
            assert_eq!(choice.of_local_rank(3, 0), choice);
        }
        for choice in [Cpu, Cuda(0), Cuda(1)] {
            assert_eq!(choice.of_local_rank(3, 4), choice);
        }
    }

    #[test]
    fn a_missing_gpu_is_named() {
        let message = DeviceChoice::Cuda(999).resolve().unwrap_err().to_string();
        assert!(message.contains("cuda:999") && message.contains("--device cpu"), "{message}");
    }
}

//! The machine: processor, memory, disks, and the libraries that its loader finds.

use std::fs;
use std::path::Path;
use std::process::Command;

use sysinfo::{Disks, System};

/// The processor, as far as it decides which arithmetic is fast.
#[derive(Debug)]
pub struct Processor {
    pub model: String,
    /// Threads that this process may run at once.
    pub threads: usize,
    features: Vec<String>,
}

/// Features that speed up matrix products, the best first, with the names that Linux gives them.
const FEATURES: [(&str, &str); 9] = [
    ("AMX bf16", "amx_bf16"),
    ("AMX int8", "amx_int8"),
    ("AVX-512 bf16", "avx512_bf16"),
    ("AVX-512 VNNI", "avx512_vnni"),
    ("AVX-512", "avx512f"),
    ("AVX2", "avx2"),
    ("FMA", "fma"),
    ("Arm bf16", "bf16"),
    ("Arm SVE", "sve"),
];

impl Processor {
    /// The processor of this machine.
    pub fn here() -> Self {
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = System::new().ok().and_then(|mut system| {
            system.refresh_cpu_list(sysinfo::CpuRefreshKind::nothing());
            let brand = system.cpus().first()?.brand().trim().to_owned();
            (!brand.is_empty()).then_some(brand)
        });
        Self {
            model: model.unwrap_or_else(|| "unknown".to_owned()),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            features: features(&text),
        }
    }

    /// The features that matter, by the names that people use.
    pub fn features(&self) -> Vec<&'static str> {
        let has = |flag: &str| self.features.iter().any(|feature| feature == flag);
        FEATURES.iter().filter(|(_, flag)| has(flag)).map(|(name, _)| *name).collect()
    }

    /// The speed to expect of training in bf16.
    pub fn bf16(&self) -> &'static str {
        let names = self.features();
        if names.contains(&"AMX bf16") {
            "bf16 is several times as fast as fp32"
        } else if names.contains(&"AVX-512 bf16") || names.contains(&"Arm bf16") {
            "bf16 is supported and faster than fp32"
        } else {
            "no bf16 arithmetic: fp32 is the faster one here"
        }
    }
}

/// The flags of the first processor in the text of `/proc/cpuinfo`.
fn features(cpuinfo: &str) -> Vec<String> {
    let line = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        matches!(key.trim(), "flags" | "Features").then_some(value)
    });
    line.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Memory that this process may use and how much of it is free, in bytes; limits of a container
/// count. `None` where the system does not say.
pub fn memory() -> Option<(u64, u64)> {
    let mut system = System::new().ok()?;
    system.refresh_memory();
    let (mut total, mut free) = (system.total_memory(), system.available_memory());
    if let Some(limits) = system.cgroup_limits()
        && limits.total_memory > 0
        && limits.total_memory < total
    {
        total = limits.total_memory;
        free = free.min(limits.free_memory);
    }
    Some((total, free))
}

/// Free space for a path that need not exist yet, in bytes; `None` if its disk is not known.
pub fn free_space(path: &Path) -> Option<u64> {
    let existing = path.ancestors().find_map(|folder| folder.canonicalize().ok())?;
    Disks::new_with_refreshed_list()
        .ok()?
        .iter()
        .filter(|disk| existing.starts_with(disk.mount_point()))
        .max_by_key(|disk| disk.mount_point().components().count())
        .map(|disk| disk.available_space())
}

/// The libraries that a shared library needs and the loader does not find, in the words of `ldd`. Empty as well if there is
/// no `ldd`.
pub fn unresolved_libraries(library: &Path) -> Vec<String> {
    let Ok(output) = Command::new("ldd").arg(library).output() else {
        return Vec::new();
    };
    // Missing versions of glibc are reported apart from the list.
    let text = [output.stdout, output.stderr].concat();
    unresolved(&String::from_utf8_lossy(&text))
}

fn unresolved(ldd: &str) -> Vec<String> {
    let lines = ldd.lines().map(str::trim).filter(|line| line.contains("not found"));
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(cpuinfo: &str) -> Processor {
        Processor { model: "a processor".to_owned(), threads: 2, features: features(cpuinfo) }
    }

    #[test]
    fn features_are_read_as_whole_words() {
        let sapphire = processor("model\t: x\nflags\t\t: fpu avx2 avx512f amx_bf16 avx512_bf16\n");
        assert_eq!(sapphire.features(), ["AMX bf16", "AVX-512 bf16", "AVX-512", "AVX2"]);
        assert!(sapphire.bf16().contains("several times"));

        let old = processor("flags : fpu avx512fx xamx_bf16\n\nflags : avx2\n");
        assert!(old.features().is_empty());
        assert!(old.bf16().contains("fp32 is the faster"));

        let arm = processor("processor : 0\nFeatures : fp asimd bf16 sve\n");
        assert_eq!(arm.features(), ["Arm bf16", "Arm SVE"]);
        assert!(processor("").features().is_empty());
    }

    #[test]
    fn missing_libraries_are_taken_from_the_list() {
        let text = "\tlinux-vdso.so.1 (0x7f)\n\tlibcudart.so.13 => not found\n\tlibc.so.6 => /l (0x7)\n";
        assert_eq!(unresolved(text), ["libcudart.so.13 => not found"]);
    }

    #[test]
    fn space_is_known_for_a_folder_to_come() {
        let folder = tempfile::tempdir().unwrap();
        let here = free_space(folder.path());
        let later = free_space(&folder.path().join("a/b/c"));
        // A container may hide its disks; then neither is known.
        assert_eq!(here.is_some(), later.is_some());
    }
}

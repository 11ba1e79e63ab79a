//! NVIDIA GPUs and their driver, and whether the linked libtorch can use them.

use std::process::Command;

use crate::libtorch::folder::Libtorch;
use crate::machine;

/// The lowest compute capability that the CUDA 13 builds of libtorch have code for.
const LOWEST_CAPABILITY: (u32, u32) = (7, 5);

/// One GPU.
#[derive(Debug, PartialEq, Eq)]
pub struct Gpu {
    pub name: String,
    pub driver: String,
    /// With its unit.
    pub memory: String,
    /// Major and minor; none if the driver is too old to say.
    pub capability: Option<(u32, u32)>,
}

/// The GPUs of this machine and the newest CUDA version that their driver serves.
#[derive(Debug, PartialEq, Eq)]
pub struct Gpus {
    pub list: Vec<Gpu>,
    pub cuda: Option<(u32, u32)>,
}

impl Gpus {
    /// Asks the driver's own program; none if it is missing or fails.
    pub fn here() -> Option<Self> {
        let ask = |arguments: &[&str]| {
            let output = Command::new("nvidia-smi").args(arguments).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let fields = "--query-gpu=name,driver_version,memory.total,compute_cap";
        let list = parse_list(&ask(&[fields, "--format=csv,noheader"])?);
        (!list.is_empty()).then(|| Self { list, cuda: ask(&[]).and_then(|text| parse_cuda(&text)) })
    }

    /// Their names with their memory.
    pub fn names(&self) -> Vec<String> {
        self.list.iter().map(|gpu| format!("{} ({})", gpu.name, gpu.memory)).collect()
    }

    /// The reason why `libtorch` cannot use these GPUs, with the remedy; `None` if it can.
    pub fn obstacle(&self, libtorch: &Libtorch) -> Option<(String, String)> {
        let complete = "python3 -m pip install torch==2.11.0, then cargo xtask setup --again";
        let Some(built) = libtorch.cuda.as_deref().and_then(parse_version) else {
            return Some(("the linked libtorch is built for CPUs alone".into(), complete.into()));
        };
        if let Some(driver) = self.cuda
            && driver.0 < built.0
        {
            return Some((
                format!(
                    "the driver serves CUDA {}.{}, and libtorch is built for {}.{}",
                    driver.0, driver.1, built.0, built.1
                ),
                "install a newer NVIDIA driver (CUDA 13 needs 580 or later)".into(),
            ));
        }
        if let Some(old) = self.list.iter().find(|gpu| gpu.capability.is_some_and(too_old)) {
            return Some((
                format!("{} is older than what libtorch for CUDA 13 has code for", old.name),
                "use the CPU, or a GPU of compute capability 7.5 or later".into(),
            ));
        }
        let library = libtorch.libraries().join("libtorch_cuda.so");
        if !library.is_file() {
            return Some(("libtorch has no libtorch_cuda.so".into(), complete.into()));
        }
        let missing = machine::unresolved_libraries(&library);
        let first = missing.first()?;
        Some((format!("{} CUDA libraries are missing: {first}", missing.len()), complete.into()))
    }
}

fn too_old(capability: (u32, u32)) -> bool {
    capability < LOWEST_CAPABILITY
}

fn parse_list(csv: &str) -> Vec<Gpu> {
    csv.lines()
        .filter_map(|line| {
            let mut fields = line.split(", ").map(str::trim);
            Some(Gpu {
                name: fields.next().filter(|name| !name.is_empty())?.to_owned(),
                driver: fields.next()?.to_owned(),
                memory: fields.next()?.to_owned(),
                capability: fields.next().and_then(parse_version),
            })
        })
        .collect()
}

/// The number after `CUDA Version:` in the head of the program's table.
fn parse_cuda(table: &str) -> Option<(u32, u32)> {
    let (_, rest) = table.split_once("CUDA Version:")?;
    parse_version(rest.split_whitespace().next()?)
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus(cuda: &str, capability: &str) -> Gpus {
        let list = parse_list(&format!("NVIDIA H200, 580.95.05, 143771 MiB, {capability}\n"));
        assert_eq!(list.len(), 1);
        Gpus { list, cuda: parse_cuda(&format!("| Driver: 580  CUDA Version: {cuda}     |")) }
    }

    fn libtorch(cuda: Option<&str>) -> Libtorch {
        Libtorch { root: "/no/such/torch".into(), version: "2.11.0".into(), cuda: cuda.map(str::to_owned) }
    }

    #[test]
    fn the_table_is_read() {
        let found = gpus("13.0", "9.0");
        assert_eq!(found.cuda, Some((13, 0)));
        let gpu = &found.list[0];
        assert_eq!((gpu.name.as_str(), gpu.driver.as_str()), ("NVIDIA H200", "580.95.05"));
        assert_eq!((gpu.memory.as_str(), gpu.capability), ("143771 MiB", Some((9, 0))));
        assert!(parse_list("\n").is_empty());
        assert_eq!(parse_cuda("no table"), None);
    }

    #[test]
    fn each_obstacle_is_told_apart() {
        let obstacle = |cuda, capability, built| {
            gpus(cuda, capability).obstacle(&libtorch(built)).map(|(problem, _)| problem).unwrap()
        };
        assert!(obstacle("13.0", "9.0", None).contains("CPUs alone"));
        assert!(obstacle("12.8", "9.0", Some("13.0")).contains("CUDA 12.8"));
        assert!(obstacle("13.0", "7.0", Some("13.0")).contains("H200 is older"));
        // Numbers are compared as numbers: 12.0 is later than 7.5.
        assert!(obstacle("13.1", "12.0", Some("13.0")).contains("no libtorch_cuda.so"));
    }
}

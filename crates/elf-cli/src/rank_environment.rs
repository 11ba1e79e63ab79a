//! Which process of how many this is, as torchrun, Slurm's srun or `elf launch` say it in the environment.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use elf_core::device::{DeviceChoice, cuda_devices};
use elf_train::{C10d, Comm, Meeting, MeetingPoint, Solo};
use tch::Device;

/// How long an operation waits for the other ranks unless ELF_TIMEOUT says otherwise, in seconds.
const TIMEOUT: u64 = 600;

/// The file of the library that makes NCCL groups, beside the program unless ELF_NCCL_LIBRARY names it.
const NCCL_LIBRARY: &str = "libelf_nccl.so";

/// This process's place among others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankEnvironment {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
    /// Its number among those of this host.
    pub local_rank: usize,
    /// Where they meet.
    pub point: MeetingPoint,
    /// How long an operation waits for the others.
    pub timeout: Duration,
    /// The network interface to use (GLOO_SOCKET_IFNAME).
    pub interface: Option<String>,
}

impl RankEnvironment {
    /// Reads the environment; `None` if nobody started this process as one of several.
    ///
    /// # Errors
    /// Names a variable that is missing or makes no sense.
    pub fn read() -> Result<Option<Self>> {
        Self::from_variables(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn from_variables(get: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str| -> Result<Option<usize>> {
            get(name).map(|v| v.parse().with_context(|| format!("{name}={v} is not a number"))).transpose()
        };
        let (rank, world, local_rank, host, port) = match (number("RANK")?, number("WORLD_SIZE")?) {
            (Some(rank), Some(world)) => (rank, world, number("LOCAL_RANK")?, get("MASTER_ADDR"), None),
            (None, None) => {
                // A batch script has SLURM_PROCID too; only srun's tasks have a step with a number of tasks.
                let (Some(rank), Some(world)) = (number("SLURM_PROCID")?, number("SLURM_STEP_NUM_TASKS")?) else {
                    return Ok(None);
                };
                if world < 2 {
                    return Ok(None);
                }
                let first = || get("SLURM_STEP_NODELIST").or_else(|| get("SLURM_JOB_NODELIST")).map(|l| first_host(&l));
                // Ports of other jobs on the same host are likely to differ.
                let port = number("SLURM_JOB_ID")?.map(|job| (20_000 + job % 20_000) as u16);
                (rank, world, number("SLURM_LOCALID")?, get("MASTER_ADDR").or_else(first), port)
            }
            (rank, _) => {
                let (there, missing) = if rank.is_some() { ("RANK", "WORLD_SIZE") } else { ("WORLD_SIZE", "RANK") };
                bail!(
                    "{there} is set and {missing} is not: start the ranks with torchrun, srun or `elf launch`, or unset it"
                );
            }
        };
        if rank >= world {
            bail!("this is rank {rank} of {world}, but ranks count from 0: see RANK and WORLD_SIZE");
        }
        let Some(host) = host else { bail!("MASTER_ADDR is not set: on which host is rank 0?") };
        let port = match get("MASTER_PORT") {
            Some(text) => Some(text.parse().with_context(|| format!("MASTER_PORT={text} is not a port"))?),
            None => port,
        };
        let Some(port) = port else { bail!("MASTER_PORT is not set: at which port of {host} do the ranks meet?") };
        let agent = get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v.eq_ignore_ascii_case("true"));
        let attempt = get("TORCHELASTIC_RESTART_COUNT").unwrap_or_else(|| "0".into());
        Ok(Some(Self {
            rank,
            world,
            local_rank: local_rank.unwrap_or(0),
            point: MeetingPoint { host, port, opened_by_rank_0: !agent, prefix: prefix(&attempt) },
            timeout: Duration::from_secs(number("ELF_TIMEOUT")?.map_or(TIMEOUT, |s| s as u64).max(1)),
            interface: get("GLOO_SOCKET_IFNAME"),
        }))
    }

    /// The device of this rank.
    fn device(&self, choice: DeviceChoice) -> Result<Device> {
        let visible = if choice == DeviceChoice::Cpu { 0 } else { cuda_devices() };
        Ok(choice.of_local_rank(self.local_rank, visible).resolve()?)
    }
}

/// How many processes of this run share the memory of this machine, as far as the environment says it.
pub fn processes_here() -> u64 {
    let count = std::env::var("LOCAL_WORLD_SIZE").ok().and_then(|text| text.parse().ok());
    count.unwrap_or(1).max(1)
}

/// The prefix of the keys of one attempt to run.
pub fn prefix(attempt: &str) -> String {
    format!("elf/{attempt}/")
}

/// The ranks of this run, and the device of this one.
///
/// # Errors
/// If the environment contradicts itself, the device is not there, or the other ranks do not come.
pub fn meet(choice: DeviceChoice) -> Result<(Device, Box<dyn Comm>)> {
    let Some(place) = RankEnvironment::read()? else { return Ok((choice.resolve()?, Box::new(Solo))) };
    if std::env::var_os("TORCH_CPP_LOG_LEVEL").is_none() {
        elf_c10d::hush_libtorch();
    }
    let device = place.device(choice)?;
    let beside = || std::env::current_exe().ok().map(|program| program.with_file_name(NCCL_LIBRARY));
    let nccl_library = std::env::var_os("ELF_NCCL_LIBRARY").map(PathBuf::from).or_else(beside);
    let comm = C10d::meet(&Meeting {
        rank: place.rank,
        world: place.world,
        point: place.point,
        timeout: place.timeout,
        interface: place.interface,
        device,
        nccl_library: nccl_library.unwrap_or_else(|| NCCL_LIBRARY.into()),
    })?;
    Ok((device, Box::new(comm)))
}

/// Refuses to run as one of several processes.
///
/// # Errors
/// If this is one, for a command that does not share its work.
pub fn refuse_several(command: &str) -> Result<()> {
    match RankEnvironment::read()? {
        None => Ok(()),
        // Some containers say so to every process.
        Some(place) if place.world == 1 => Ok(()),
        Some(place) => bail!(
            "{command} does not share its work, but was started as rank {} of {}: start it once",
            place.rank,
            place.world
        ),
    }
}

/// The first host of a Slurm list: `gpu[07-09,12],login` is gpu07.
fn first_host(list: &str) -> String {
    match list.split_once(['[', ',']) {
        Some((name, rest)) if list[name.len()..].starts_with('[') => {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            format!("{name}{digits}")
        }
        Some((name, _)) => name.to_owned(),
        None => list.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<RankEnvironment>> {
        RankEnvironment::from_variables(&|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn torchruns_ranks_are_recognised() {
        let mut variables = vec![
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("MASTER_ADDR", "h"),
            ("MASTER_PORT", "29500"),
        ];
        let place = read(&variables).unwrap().unwrap();
        assert_eq!((place.rank, place.world, place.local_rank), (3, 4, 1));
        assert_eq!((place.point.host.as_str(), place.point.port, place.point.opened_by_rank_0), ("h", 29500, true));
        assert_eq!(place.timeout, Duration::from_secs(TIMEOUT));
        variables.extend([
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            ("ELF_TIMEOUT", "7"),
            ("GLOO_SOCKET_IFNAME", "eth1"),
        ]);
        let place = read(&variables).unwrap().unwrap();
        assert!(!place.point.opened_by_rank_0);
        assert_eq!((place.point.prefix.as_str(), place.timeout.as_secs()), ("elf/2/", 7));
        assert_eq!(place.interface.as_deref(), Some("eth1"));
    }

    #[test]
    fn sruns_tasks_are_recognised_and_batch_scripts_are_not() {
        let task = [
            ("SLURM_PROCID", "5"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_NODELIST", "gpu[07-09,12]"),
            ("SLURM_JOB_ID", "123456"),
        ];
        let place = read(&task).unwrap().unwrap();
        assert_eq!((place.rank, place.world, place.local_rank), (5, 8, 1));
        assert_eq!((place.point.host.as_str(), place.point.port), ("gpu07", 23456));
        assert!(place.point.opened_by_rank_0);
        assert_eq!(read(&task[..1]).unwrap(), None);
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")]).unwrap(), None);
        assert_eq!(read(&[]).unwrap(), None);
    }

    #[test]
    fn half_an_environment_is_refused() {
        let message = |variables: &[(&str, &str)]| read(variables).unwrap_err().to_string();
        assert!(message(&[("RANK", "0")]).contains("WORLD_SIZE is not"));
        assert!(message(&[("WORLD_SIZE", "2")]).contains("RANK is not"));
        let mut some = vec![("RANK", "0"), ("WORLD_SIZE", "2")];
        assert!(message(&some).contains("MASTER_ADDR"));
        some.push(("MASTER_ADDR", "h"));
        assert!(message(&some).contains("MASTER_PORT"));
        some.push(("MASTER_PORT", "none"));
        assert!(message(&some).contains("MASTER_PORT=none"));
        assert!(message(&[("RANK", "2"), ("WORLD_SIZE", "2")]).contains("rank 2 of 2"));
        assert!(message(&[("RANK", "x"), ("WORLD_SIZE", "2")]).contains("RANK=x"));
    }

    #[test]
    fn the_first_host_of_a_list_is_found() {
        for (list, first) in
            [("gpu1", "gpu1"), ("a,b", "a"), ("gpu[07-09,12],login", "gpu07"), ("n[1,3]", "n1"), ("x-[2]", "x-2")]
        {
            assert_eq!(first_host(list), first);
        }
    }
}

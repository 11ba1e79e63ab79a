//! How fast two processes of this host sum a bucket of gradients over Gloo: `cargo run --release -p elf-c10d --example
//! all_reduce_rate`. The numbers are the link of the model of a step in docs/scaling.md.

use std::time::{Duration, Instant};

use elf_c10d::{Group, Membership, Store, Via};
use tch::{Device, Kind, Tensor};

const TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next(), arguments.next()) {
        (Some(port), _) => measure(&Store::join("127.0.0.1", port.parse()?, TIMEOUT)?, 1),
        _ => {
            let store = Store::serve_this_host(TIMEOUT)?;
            let port = store.port().unwrap_or_default().to_string();
            let mut other = std::process::Command::new(std::env::current_exe()?).arg(port).spawn()?;
            measure(&store, 0)?;
            other.wait()?;
            Ok(())
        }
    }
}

fn measure(store: &Store, rank: usize) -> Result<(), Box<dyn std::error::Error>> {
    tch::set_num_threads(1);
    let group = Group::gloo(store, Membership { rank, world: 2, timeout: TIMEOUT }, Via::Address("127.0.0.1"))?;
    for bytes in [64, 1 << 20, 25 << 20] {
        let tensor = Tensor::zeros([bytes / 4], (Kind::Float, Device::Cpu));
        let mut best = f64::MAX;
        for _ in 0..20 {
            group.barrier()?.wait()?;
            let begun = Instant::now();
            group.all_reduce_sum(&tensor)?.wait()?;
            best = best.min(begun.elapsed().as_secs_f64());
        }
        if rank == 0 {
            println!("{bytes} bytes: {:.3} ms, {:.2} GB/s", best * 1e3, bytes as f64 / best / 1e9);
        }
    }
    Ok(())
}

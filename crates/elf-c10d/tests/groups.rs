//! Two and three processes on the loopback address.

mod ranks;

use std::time::{Duration, Instant};

use elf_c10d::{Group, Store, Via};
use ranks::{Place, Ranks, in_ranks, rank_body};
use tch::{Device, Kind, Tensor};

const LONG: Duration = Duration::from_secs(60);

fn group(place: &Place, timeout: Duration) -> Group {
    let store = place.store(LONG).within("group").unwrap();
    Group::gloo(&store, place.membership(timeout), Via::Address("127.0.0.1")).unwrap()
}

/// Different on every rank, and long enough to be cut into pieces.
fn numbers(rank: usize, n: i64) -> Tensor {
    Tensor::arange(n, (Kind::Float, Device::Cpu)) * (rank as f64 + 1.0)
}

fn every_operation(place: Place) {
    let (rank, world) = (place.rank, place.world);
    let group = group(&place, LONG);
    assert_eq!((group.rank(), group.world(), group.timeout()), (rank, world, LONG));
    let n = 1003;
    let total = (1..=world).sum::<usize>() as f64;
    let base = Tensor::arange(n, (Kind::Float, Device::Cpu));

    let x = numbers(rank, n);
    group.all_reduce_sum(&x).unwrap().wait().unwrap();
    assert!(x.allclose(&(&base * total), 1e-6, 0.0, false));

    let x = numbers(rank, n);
    group.all_reduce_mean(&x).unwrap().wait().unwrap();
    assert!(x.allclose(&(&base * (total / world as f64)), 1e-6, 0.0, false));

    for root in 0..world {
        let x = numbers(rank, n);
        group.broadcast(&x, root).unwrap().wait().unwrap();
        assert!(x.equal(&numbers(root, n)));
    }

    let all = Tensor::zeros([world as i64 * n], (Kind::Float, Device::Cpu));
    group.all_gather(&all, &numbers(rank, n)).unwrap().wait().unwrap();
    for other in 0..world {
        assert!(all.narrow(0, other as i64 * n, n).equal(&numbers(other, n)));
    }

    let own = Tensor::zeros([n], (Kind::Float, Device::Cpu));
    group.reduce_scatter_sum(&own, &(all * (rank as f64 + 1.0))).unwrap().wait().unwrap();
    assert!(own.allclose(&(numbers(rank, n) * total), 1e-6, 0.0, false));

    // Many at once, ended in another order than begun.
    let many: Vec<Tensor> = (0..20).map(|i| numbers(rank + i, n)).collect();
    let mut pending: Vec<_> = many.iter().map(|t| group.all_reduce_sum(t).unwrap()).collect();
    pending.reverse();
    for p in pending {
        p.wait().unwrap();
    }
    for (i, t) in many.iter().enumerate() {
        assert!(t.allclose(&(&base * (total + (i * world) as f64)), 1e-6, 0.0, false), "{i}");
    }

    let x = Tensor::from_slice(&[rank as f64, 0.25]);
    group.all_reduce_sum(&x).unwrap().wait().unwrap();
    assert_eq!(Vec::<f64>::try_from(&x).unwrap(), [total - world as f64, 0.25 * world as f64]);

    group.barrier().unwrap().wait().unwrap();
    let gap = Tensor::zeros([4, 4], (Kind::Float, Device::Cpu)).transpose(0, 1).narrow(0, 0, 2);
    assert!(group.all_reduce_sum(&gap).unwrap_err().to_string().contains("contiguous"));
    assert!(group.all_gather(&base, &base).is_err());
    assert!(group.broadcast(&base, world).is_err());
}

#[test]
fn two_processes_do_every_operation() {
    in_ranks("two_processes_do_every_operation", 2, every_operation);
}

#[test]
fn three_processes_do_every_operation() {
    in_ranks("three_processes_do_every_operation", 3, every_operation);
}

#[test]
fn stores_show_everyone_the_same() {
    in_ranks("stores_show_everyone_the_same", 3, |place| {
        let file = Store::file(&place.folder.join("store"), LONG).unwrap();
        for store in [place.store(LONG), file] {
            let within = store.within("here").unwrap();
            let first = within.set_once("first", place.rank.to_string().as_bytes()).unwrap();
            within.set(&format!("seen/{}", place.rank), &first).unwrap();
            for rank in 0..place.world {
                assert_eq!(within.get(&format!("seen/{rank}")).unwrap(), first);
            }
            assert!(!store.has("first").unwrap(), "keys within a prefix are apart");
            store.add("done", 1).unwrap();
            while store.add("done", 0).unwrap() < place.world as i64 {
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(store.wait("never", Duration::from_millis(20)).is_err());
        }
    });
}

/// A rank that takes part no more: the others' operation fails, and does not wait for longer than the timeout.
#[test]
fn a_killed_process_is_noticed_by_all() {
    if rank_body(|place| {
        let store = place.store(LONG);
        let group = group(&place, LONG);
        group.barrier().unwrap().wait().unwrap();
        store.add("ready", 1).unwrap();
        if place.rank == 2 {
            std::thread::sleep(LONG);
        }
        let error = group.all_reduce_sum(&numbers(place.rank, 10)).and_then(|p| p.wait()).unwrap_err();
        store.set(&format!("failed/{}", place.rank), error.to_string().as_bytes()).unwrap();
    }) {
        return;
    }
    let mut ranks = Ranks::start("a_killed_process_is_noticed_by_all", 3);
    while ranks.store.add("ready", 0).unwrap() < 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let begun = Instant::now();
    ranks.children[2].kill().unwrap();
    for rank in 0..2 {
        let message = String::from_utf8(ranks.store.get(&format!("failed/{rank}")).unwrap()).unwrap();
        assert!(message.contains("all-reduce failed"), "{message}");
    }
    // Far below the timeout: a closed connection is noticed at once.
    assert!(begun.elapsed() < LONG / 2);
    for (rank, ended) in ranks.finish(&[2]).iter().enumerate().take(2) {
        assert_eq!(ended.code, Some(0), "rank {rank}:\n{}", ended.output);
    }
}

#[test]
fn a_process_that_does_not_come_is_waited_for_no_longer_than_the_timeout() {
    in_ranks("a_process_that_does_not_come_is_waited_for_no_longer_than_the_timeout", 2, |place| {
        let store = place.store(LONG);
        // Long enough for a busy machine to form the group in, which has the same timeout.
        let group = group(&place, Duration::from_secs(5));
        group.barrier().unwrap().wait().unwrap();
        if place.rank == 0 {
            let error = group.all_reduce_sum(&numbers(0, 10)).and_then(|p| p.wait()).unwrap_err();
            assert!(error.to_string().to_lowercase().contains("timed out"), "{error}");
            store.set("done", b"").unwrap();
        } else {
            store.wait("done", LONG).unwrap();
        }
    });
}

#[test]
fn one_process_is_a_group_too() {
    let store = Store::serve("127.0.0.1", 0, LONG).unwrap();
    let membership = elf_c10d::Membership { rank: 0, world: 1, timeout: LONG };
    let group = Group::gloo(&store.within("g").unwrap(), membership, Via::Address("127.0.0.1")).unwrap();
    let x = numbers(0, 5);
    group.all_reduce_mean(&x).unwrap().wait().unwrap();
    assert!(x.equal(&numbers(0, 5)));
}

#[test]
fn refusals_name_what_is_wrong() {
    elf_c10d::hush_libtorch();
    let store = Store::serve("127.0.0.1", 0, LONG).unwrap();
    let wrong = elf_c10d::Membership { rank: 2, world: 2, timeout: LONG };
    let message = Group::gloo(&store, wrong, Via::HostName).unwrap_err().to_string();
    assert!(message.contains("2 does not exist among 2 ranks"), "{message}");
    let port = store.port().unwrap();
    let message = Store::serve("127.0.0.1", port, LONG).unwrap_err().to_string();
    assert!(message.contains(&format!("opening the meeting point 127.0.0.1:{port}")), "{message}");
    drop(store);
    let message = Store::join("127.0.0.1", port, Duration::from_millis(200)).unwrap_err().to_string();
    assert!(message.contains("reaching the meeting point"), "{message}");
    assert!(elf_c10d::Store::file("/tmp/a\0b".as_ref(), LONG).is_err());
    let alone = elf_c10d::Membership { rank: 0, world: 1, timeout: LONG };
    let store = Store::serve("127.0.0.1", 0, LONG).unwrap();
    let message = Group::nccl(&store, alone, 0, "/nowhere/libelf_nccl.so".as_ref()).unwrap_err().to_string();
    assert!(message.contains("/nowhere/libelf_nccl.so") && message.contains("cargo xtask nccl"), "{message}");
}

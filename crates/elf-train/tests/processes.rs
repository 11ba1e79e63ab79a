//! [`C10d`] in two and three processes on the loopback address.

#[path = "../../elf-c10d/tests/ranks/mod.rs"]
mod ranks;
mod small;

use std::rc::Rc;
use std::time::Duration;

use elf_core::Network;
use elf_train::optim::OptimizerConfig;
use elf_train::{C10d, Comm, Error, Meeting, MeetingPoint, Trainer};
use ranks::{Place, Ranks, in_ranks, rank_body};
use tch::{Device, Kind, Tensor};

const LONG: Duration = Duration::from_secs(60);
const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn meeting(place: &Place, timeout: Duration) -> Meeting {
    Meeting {
        rank: place.rank,
        world: place.world,
        point: MeetingPoint {
            host: "127.0.0.1".into(),
            port: place.port,
            opened_by_rank_0: false,
            prefix: "test/".into(),
        },
        timeout,
        interface: None,
        device: Device::Cpu,
        nccl_library: "none".into(),
    }
}

fn meet(place: &Place, timeout: Duration) -> C10d {
    elf_c10d::hush_libtorch();
    C10d::meet(&meeting(place, timeout)).unwrap()
}

fn every_call(place: Place) {
    let comm = meet(&place, LONG);
    let (rank, world) = (place.rank, place.world as u64);
    assert_eq!((comm.rank(), comm.world()), (rank as u64, world));

    let mut numbers = [1.0, rank as f64];
    comm.sum_numbers(&mut numbers).unwrap();
    assert_eq!(numbers, [world as f64, (0..world).sum::<u64>() as f64]);

    let mut tensors =
        [Tensor::full([3, 2], rank as f64, F32), Tensor::ones([4, 3], F32).transpose(0, 1), Tensor::from(1.5)];
    comm.sum_tensors(&mut tensors).unwrap();
    assert_eq!(tensors[0].double_value(&[2, 1]), numbers[1]);
    assert_eq!(tensors[1].double_value(&[2, 3]), world as f64);
    assert_eq!(tensors[2].double_value(&[]), 1.5 * world as f64);

    let shared: Vec<Tensor> = (0..7).map(|i| Tensor::full([i + 1], (100 * rank) as f64 + i as f64, F32)).collect();
    let owners: Vec<u64> = (0..7).map(|i| i % world).collect();
    comm.share_tensors(&shared, &owners).unwrap();
    for (i, (t, owner)) in shared.iter().zip(&owners).enumerate() {
        assert_eq!(t.double_value(&[0]), (100 * owner) as f64 + i as f64);
    }

    let own = vec![rank as u8; rank * 3];
    let expected: Vec<Vec<u8>> = (0..place.world).map(|r| vec![r as u8; r * 3]).collect();
    assert_eq!(comm.gather_bytes(&own).unwrap(), expected);

    comm.agree(&[("seed", "1".into())]).unwrap();
    let last = place.world - 1;
    match comm.agree(&[("seed", "1".into()), ("lr", format!("{}", u8::from(rank == last)))]) {
        Err(Error::Disagreement { what, rank, first, other }) => {
            assert_eq!((what.as_str(), rank, first.as_str(), other.as_str()), ("lr", last, "0", "1"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_ranks_make_every_call() {
    in_ranks("two_ranks_make_every_call", 2, every_call);
}

#[test]
fn three_ranks_make_every_call() {
    in_ranks("three_ranks_make_every_call", 3, every_call);
}

/// Gradients of a pass that reaches other parameters on every rank, after one whose gradients stay at home.
#[test]
fn gradients_are_summed_while_they_are_made() {
    in_ranks("gradients_are_summed_while_they_are_made", 3, |place| {
        let comm = meet(&place, LONG);
        // Large enough for several buckets.
        let leaves: Vec<Tensor> = (0..6).map(|_| Tensor::ones([3 << 20], F32).set_requires_grad(true)).collect();
        for leaf in &leaves {
            (leaf * 0.0).sum(Kind::Float).backward();
        }
        let sum = comm.gradient_sum(leaves.iter().map(Tensor::shallow_clone).collect()).unwrap();
        let pass = |factor: f64| {
            let reached = leaves.iter().enumerate().filter(|(i, _)| i % place.world != place.rank);
            let loss: Tensor = reached.map(|(i, leaf)| (leaf * (factor * (i + 1) as f64)).sum(Kind::Float)).sum();
            loss.backward();
        };
        for step in 0..2 {
            for leaf in &leaves {
                leaf.shallow_clone().zero_grad();
            }
            pass(1.0);
            assert_eq!(leaves[(place.rank + 1) % 3].grad().double_value(&[7]), ((place.rank + 1) % 3 + 1) as f64);
            sum.begin();
            pass(10.0);
            sum.finish().unwrap();
            for (i, leaf) in leaves.iter().enumerate() {
                // Two of three ranks reach each leaf, with 1 and then 10.
                let expected = 2.0 * 11.0 * (i + 1) as f64;
                assert_eq!(leaf.grad().min().double_value(&[]), expected, "step {step}, leaf {i}");
                assert_eq!(leaf.grad().max().double_value(&[]), expected, "step {step}, leaf {i}");
            }
        }
    });
}

/// A row's draws depend on its place in the global batch, so the same seed trains the same network on any number of ranks.
#[test]
fn a_seed_trains_the_same_network_on_any_number_of_ranks() {
    in_ranks("a_seed_trains_the_same_network_on_any_number_of_ranks", 3, |place| {
        let rows = |i: u64, rank: i64, world: usize| {
            let all = small::batch(i, 6);
            let index = Tensor::from_slice(&(rank..6).step_by(world).collect::<Vec<i64>>());
            elf_flow::LatentBatch {
                latents: all.latents.index_select(0, &index),
                ids: all.ids.index_select(0, &index),
                loss_mask: all.loss_mask.index_select(0, &index),
                condition: None,
                dropped: Vec::new(),
            }
        };
        for optimizer in [OptimizerConfig::default(), OptimizerConfig::Adamw(Default::default())] {
            let mut settings = small::config(optimizer);
            settings.schedule.warmup_steps = 0;
            let objective = elf_flow::ElfObjective { decoder_prob: 0.3, ..Default::default() };
            let go = |comm: Rc<dyn Comm>, seed: u64| {
                let (rank, world) = (comm.rank() as i64, comm.world() as usize);
                // The first rank's weights count.
                let mut trainer =
                    Trainer::new(small::SmallNet::new(seed + rank as u64), objective, settings, comm).unwrap();
                let mut seen = Vec::new();
                for step in 0..3 {
                    let batches = (0..settings.accumulation.get() as u64).map(|i| Ok(rows(2 * step + i, rank, world)));
                    let metrics = trainer.step(batches).unwrap().unwrap().read().unwrap();
                    seen.push((metrics.loss, metrics.grad_norm));
                }
                (trainer.net().params().snapshot(), seen)
            };
            let (alone, expected) = go(Rc::new(elf_train::Solo), 1);
            let mut meeting = meeting(&place, LONG);
            meeting.point.prefix = format!("{optimizer:?}/").chars().filter(|c| c.is_ascii_alphanumeric()).collect();
            let (together, seen) = go(Rc::new(C10d::meet(&meeting).unwrap()), 1);
            for ((name, one), (_, many)) in alone.iter().zip(&together) {
                assert!((one - many).abs().max().double_value(&[]) < 1e-5, "{name}");
            }
            for ((loss, norm), (l, n)) in expected.iter().zip(&seen) {
                assert!((loss - l).abs() < 1e-5 * loss && (norm - n).abs() < 1e-4 * norm, "{expected:?} {seen:?}");
            }
        }
    });
}

/// What is no number on one rank stops all, and each can say where it comes from.
#[test]
fn a_nan_on_one_rank_stops_all_and_is_traced_to_it() {
    in_ranks("a_nan_on_one_rank_stops_all_and_is_traced_to_it", 3, |place| {
        let comm = meet(&place, LONG);
        let settings = small::config(OptimizerConfig::default());
        let objective = elf_flow::ElfObjective::default();
        let mut trainer = Trainer::new(small::SmallNet::new(1), objective, settings, Rc::new(comm)).unwrap();
        let mut source = small::Counted::from(0);
        source.poisoned = (place.rank == 1).then_some(5);
        let folder = elf_train::CheckpointFolder::new(place.folder.join("checkpoints"));
        let run = elf_train::Run {
            source: &mut source,
            control: elf_train::RunControl { save_every: 1, ..small::control(9) },
            checkpoints: &folder,
            plan: serde_json::json!(null),
            evaluator: None,
            observer: &mut (),
            stop: &std::sync::atomic::AtomicBool::new(false),
        };
        let error = elf_train::run(&mut trainer, run).unwrap_err();
        assert!(matches!(&error, Error::NonFinite { ranks, .. } if *ranks == [1]), "{error}");
        assert!(error.to_string().contains("because of rank 1"), "{error}");
        folder.latest().unwrap().unwrap().verify().unwrap();
    });
}

/// What a rank says when a sum fails, left at the meeting point for the test to read.
fn say_how_it_fails(place: &Place, comm: &C10d, round: &str) {
    let error = comm.sum_numbers(&mut [1.0]).unwrap_err().to_string();
    assert_eq!(comm.sum_numbers(&mut [1.0]).unwrap_err().to_string(), error, "one reason, told again");
    place.store(LONG).set(&format!("said/{round}/{}", place.rank), error.as_bytes()).unwrap();
}

/// Counts looks, not time: a machine under load may stand still for long.
fn said(ranks: &Ranks, round: &str, rank: usize) -> String {
    let key = format!("said/{round}/{rank}");
    for _ in 0..30_000 {
        if ranks.store.has(&key).unwrap() {
            return String::from_utf8(ranks.store.get(&key).unwrap()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("rank {rank} says nothing");
}

fn wait_for(ranks: &Ranks, n: i64) {
    while ranks.store.add("ready", 0).unwrap() < n {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_killed_rank_is_named_by_all_others() {
    if rank_body(|place| {
        let comm = meet(&place, LONG);
        comm.sum_numbers(&mut [1.0]).unwrap();
        place.store(LONG).add("ready", 1).unwrap();
        match place.rank {
            2 => std::thread::sleep(LONG),
            _ => say_how_it_fails(&place, &comm, "first"),
        }
    }) {
        return;
    }
    let mut ranks = Ranks::start("a_killed_rank_is_named_by_all_others", 3);
    wait_for(&ranks, 3);
    ranks.children[2].kill().unwrap();
    for rank in 0..2 {
        let text = said(&ranks, "first", rank);
        assert!(text.contains("rank 2 gives no sign of life"), "{text}");
    }
    for ended in &ranks.finish(&[2])[..2] {
        assert_eq!(ended.code, Some(0), "{}", ended.output);
    }
}

/// A rank that lives but does not join an operation, and one that left a reason: neither is taken for a dead one.
#[test]
fn a_rank_that_hangs_is_named_after_the_timeout_and_one_that_left_word_is_quoted() {
    let name = "a_rank_that_hangs_is_named_after_the_timeout_and_one_that_left_word_is_quoted";
    if rank_body(|place| {
        let comm = meet(&place, Duration::from_secs(3));
        comm.sum_numbers(&mut [1.0]).unwrap();
        let store = place.store(LONG);
        match place.rank {
            1 => {
                store.wait("said/first/0", LONG).unwrap();
                store.wait("said/first/2", LONG).unwrap();
            }
            _ => say_how_it_fails(&place, &comm, "first"),
        }
        // A second run, at the same meeting point.
        let mut second = meeting(&place, LONG);
        second.point.prefix = "second/".into();
        let comm = C10d::meet(&second).unwrap();
        comm.sum_numbers(&mut [1.0]).unwrap();
        match place.rank {
            1 => comm.stopping_for("the disk is full"),
            _ => say_how_it_fails(&place, &comm, "second"),
        }
    }) {
        return;
    }
    let ranks = Ranks::start(name, 3);
    for rank in [0, 2] {
        let text = said(&ranks, "first", rank);
        assert!(text.contains("rank 1 did not come to the operation"), "{text}");
    }
    for rank in [0, 2] {
        let text = said(&ranks, "second", rank);
        assert!(text.contains("rank 1: the disk is full"), "{text}");
    }
    for ended in ranks.finish(&[]) {
        assert_eq!(ended.code, Some(0), "{}", ended.output);
    }
}

#[test]
fn a_rank_that_never_comes_is_named() {
    in_ranks("a_rank_that_never_comes_is_named", 2, |place| {
        elf_c10d::hush_libtorch();
        let error = C10d::meet(&Meeting { world: 4, ..meeting(&place, Duration::from_secs(1)) }).unwrap_err();
        assert!(error.to_string().contains("ranks 2, 3 of 4 did not come"), "{error}");
    });
}

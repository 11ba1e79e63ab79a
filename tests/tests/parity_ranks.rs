//! The recorded training runs with their rows split over two and three processes: the same parameters and averages as those
//! of one process and of the released code; and checkpoints that any number of ranks can resume from.

#[path = "../../crates/elf-c10d/tests/ranks/mod.rs"]
mod ranks;

use std::time::Duration;

use elf_core::{Network, Noise, Precision, Replay};
use elf_encoder::T5Encoder;
use elf_flow::{ElfObjective, LatentBatch};
use elf_model::Elf;
use elf_tests::recorded::Recorded;
use elf_tests::small::network;
use elf_tests::{Reference, assert_close, parity_json, parity_path};
use elf_train::{C10d, CheckpointFolder, Comm, Meeting, MeetingPoint, Solo, Trainer};
use ranks::{Place, Ranks, in_ranks, rank_body};
use serde_json::json;
use tch::{Device, Tensor};

/// Absolute tolerance between one process and several.
const BETWEEN_WORLDS: f64 = 1e-5;
/// Absolute tolerance to the released code's numbers.
const TO_REFERENCE: f64 = 1e-4;
const LONG: Duration = Duration::from_secs(60);

/// A group of ranks under a name of its own, which tells several groups at one meeting point apart.
fn meet(place: &Place, name: &str) -> Box<dyn Comm> {
    elf_c10d::hush_libtorch();
    let point = MeetingPoint {
        host: "127.0.0.1".into(),
        port: place.port,
        opened_by_rank_0: false,
        prefix: format!("{name}/"),
    };
    let (rank, world) = (place.rank, place.world);
    let meeting = Meeting {
        rank,
        world,
        point,
        timeout: LONG,
        interface: None,
        device: Device::Cpu,
        nccl_library: "none".into(),
    };
    Box::new(C10d::meet(&meeting).unwrap())
}

/// A recorded run, and everything that it needs.
struct Run {
    recorded: Recorded,
    reference: Reference,
    encoder: T5Encoder,
}

impl Run {
    fn named(name: &str) -> Self {
        let all: Vec<Recorded> = parity_json("train.json");
        let recorded = all.into_iter().find(|r| r.name == name).unwrap();
        let reference = Reference::open(&format!("train_{name}.safetensors"));
        let encoder = T5Encoder::load(&parity_path(&recorded.encoder), Device::Cpu, Precision::F32).unwrap();
        Self { recorded, reference, encoder }
    }

    fn trainer(&self, comm: Box<dyn Comm>) -> Trainer<Elf, ElfObjective> {
        let net = network();
        Trainer::new(net, self.recorded.objective(), self.recorded.config(), comm.into()).unwrap()
    }

    fn updates(&self) -> usize {
        self.recorded.num_steps / self.recorded.grad_accum_steps.get() as usize
    }

    /// Makes the updates in `range`, with this rank's share of the rows; losses as all ranks see them.
    fn train(&self, trainer: &mut Trainer<Elf, ElfObjective>, range: std::ops::Range<usize>) -> Vec<f64> {
        let (rank, world) = (trainer.comm().rank() as i64, trainer.comm().world() as usize);
        let parts = self.recorded.grad_accum_steps.get() as usize;
        let mut losses = Vec::new();
        for update in range {
            let micro = |step: usize| {
                let batch = self.recorded.batch(&self.reference, step, &self.encoder);
                let all = batch.sizes().unwrap().0;
                let rows: Vec<i64> = (rank..all).step_by(world).collect();
                let noise: Box<dyn Noise> = Box::new(RowsOf { all, rows: rows.clone(), draws: self.draws(step) });
                Ok((of_rows(&batch, &rows), noise))
            };
            let first = update * parts;
            let report = trainer.step_with_noise((first..first + parts).map(micro)).unwrap().unwrap();
            losses.push(report.read().unwrap().loss);
        }
        losses
    }

    fn draws(&self, step: usize) -> Replay {
        self.recorded.draws(&self.reference, step)
    }
}

/// The draws of some rows, out of the draws for all rows.
struct RowsOf {
    all: i64,
    rows: Vec<i64>,
    draws: Replay,
}

impl RowsOf {
    fn whole(&self, shape: &[i64]) -> Vec<i64> {
        std::iter::once(self.all).chain(shape[1..].iter().copied()).collect()
    }

    fn part(&self, whole: &Tensor) -> Tensor {
        whole.index_select(0, &Tensor::from_slice(&self.rows))
    }
}

impl Noise for RowsOf {
    fn normal(&mut self, name: &str, shape: &[i64]) -> elf_core::Result<Tensor> {
        let whole = self.draws.normal(name, &self.whole(shape))?;
        Ok(self.part(&whole))
    }

    fn uniform(&mut self, name: &str, shape: &[i64]) -> elf_core::Result<Tensor> {
        let whole = self.draws.uniform(name, &self.whole(shape))?;
        Ok(self.part(&whole))
    }

    fn coins(&mut self, name: &str, _: usize) -> elf_core::Result<Vec<f64>> {
        let whole = self.draws.coins(name, self.all as usize)?;
        Ok(self.rows.iter().map(|&row| whole[row as usize]).collect())
    }
}

fn of_rows(batch: &LatentBatch, rows: &[i64]) -> LatentBatch {
    let index = Tensor::from_slice(rows);
    let part = |t: &Tensor| t.index_select(0, &index);
    LatentBatch {
        latents: part(&batch.latents),
        ids: part(&batch.ids),
        loss_mask: part(&batch.loss_mask),
        condition: batch.condition.as_ref().map(part),
        dropped: rows.iter().filter_map(|&row| batch.dropped.get(row as usize).copied()).collect(),
    }
}

/// The current parameters and averages; every rank gets all of them.
fn state(trainer: &mut Trainer<Elf, ElfObjective>) -> [Vec<(String, Tensor)>; 2] {
    let params = trainer.net().params().snapshot();
    let averages = trainer.with_averages(|net, _| net.params().snapshot()).unwrap();
    for ((name, before), (_, p)) in params.iter().zip(trainer.net().params().iter()) {
        assert!(before.equal(&p.tensor), "{name} is not what it was before the exchange with the averages");
    }
    [params, averages]
}

fn assert_same(a: &[Vec<(String, Tensor)>; 2], b: &[Vec<(String, Tensor)>; 2], what: &str) {
    for (a, b) in a.iter().zip(b) {
        assert_eq!(a.len(), b.len());
        for ((name, x), (other, y)) in a.iter().zip(b) {
            assert_eq!(name, other);
            assert_close(&format!("{what}: {name}"), x, y, BETWEEN_WORLDS);
        }
    }
}

fn all_runs(place: Place) {
    for name in ["muon_uncond", "adamw_uncond", "muon_cond", "muon_accum"] {
        let run = Run::named(name);
        let mut alone = run.trainer(Box::new(Solo));
        let expected_losses = run.train(&mut alone, 0..run.updates());
        let mut together = run.trainer(meet(&place, name));
        let losses = run.train(&mut together, 0..run.updates());
        for (a, b) in losses.iter().zip(&expected_losses) {
            assert!((a - b).abs() <= BETWEEN_WORLDS * b.abs(), "{name}: losses {losses:?} and {expected_losses:?}");
        }
        // Each rank keeps only a part, and the parts together are all of it.
        let mut kept = [together.ema().averages().count() as f64];
        assert!((kept[0] as usize) < together.net().params().len());
        together.comm().sum_numbers(&mut kept).unwrap();
        assert_eq!(kept[0] as usize, together.net().params().len());
        assert_eq!(together.groups(), alone.groups());

        let (one, many) = (state(&mut alone), state(&mut together));
        assert_same(&many, &one, name);
        for (under, found) in [("param_final.", &many[0]), ("ema_final.", &many[1])] {
            let finals = run.reference.under(under);
            assert_eq!(finals.len(), found.len());
            for (name, t) in found {
                assert_close(name, t, finals[name.as_str()], TO_REFERENCE);
            }
        }
    }
}

#[test]
fn parity_two_ranks() {
    in_ranks("parity_two_ranks", 2, all_runs);
}

#[test]
fn parity_three_ranks() {
    in_ranks("parity_three_ranks", 3, all_runs);
}

/// One session of a run on several ranks: from a checkpoint, if there is one, to an update and the next checkpoint.
fn session(run: &Run, comm: Box<dyn Comm>, folder: &CheckpointFolder, until: usize) -> [Vec<(String, Tensor)>; 2] {
    let mut trainer = run.trainer(comm);
    if let Some(checkpoint) = folder.latest().unwrap() {
        trainer.restore(&checkpoint).unwrap();
    }
    let done = trainer.steps_done() as usize;
    run.train(&mut trainer, done..until);
    let rank = trainer.comm().rank();
    let saved = trainer.save(folder, json!(until), json!(null)).unwrap();
    assert_eq!(saved.is_some(), rank == 0, "one writer");
    state(&mut trainer)
}

/// Two ranks begin; one rank and three ranks resume from their checkpoint.
#[test]
fn parity_checkpoints_do_not_depend_on_the_number_of_ranks() {
    let name = "parity_checkpoints_do_not_depend_on_the_number_of_ranks";
    let half = |run: &Run| run.updates() / 2;
    if rank_body(|place| {
        for recorded in ["muon_uncond", "adamw_uncond"] {
            let run = Run::named(recorded);
            let mut whole = run.trainer(Box::new(Solo));
            run.train(&mut whole, 0..run.updates());
            let expected = state(&mut whole);
            let folder = CheckpointFolder::new(place.folder.join("checkpoints").join(recorded));
            // All ranks must have looked for a checkpoint before one of them writes the next.
            let store = place.store(LONG);
            if place.rank < 2 {
                let two = Place { world: 2, folder: place.folder.clone(), ..place };
                session(&run, meet(&two, &format!("two-{recorded}")), &folder, half(&run));
            }
            store.add(recorded, 1).unwrap();
            while store.add(recorded, 0).unwrap() < 3 {
                std::thread::sleep(Duration::from_millis(2));
            }
            let alone = CheckpointFolder::new(place.folder.join(format!("alone-{recorded}-{}", place.rank)));
            copy(&folder, &alone);
            let resumed = session(&run, Box::new(Solo), &alone, run.updates());
            assert_same(&resumed, &expected, "two ranks, then one");
            let three = Place { folder: place.folder.clone(), ..place };
            let resumed = session(&run, meet(&three, &format!("three-{recorded}")), &folder, run.updates());
            assert_same(&resumed, &expected, "two ranks, then three");
            // One rank reads the checkpoint that three wrote.
            let mut back = run.trainer(Box::new(Solo));
            store.add(&format!("{recorded}/three"), 1).unwrap();
            while store.add(&format!("{recorded}/three"), 0).unwrap() < 3 {
                std::thread::sleep(Duration::from_millis(2));
            }
            back.restore(&folder.latest().unwrap().unwrap()).unwrap();
            assert_eq!(back.steps_done() as usize, run.updates());
            assert_same(&state(&mut back), &expected, "three ranks, then one");
        }
    }) {
        return;
    }
    for (rank, ended) in Ranks::start(name, 3).finish(&[]).iter().enumerate() {
        assert_eq!(ended.code, Some(0), "rank {rank}:\n{}", ended.output);
    }
}

fn copy(from: &CheckpointFolder, to: &CheckpointFolder) {
    for (_, path) in from.list().unwrap() {
        let target = to.root().join(path.file_name().unwrap());
        std::fs::create_dir_all(&target).unwrap();
        for entry in std::fs::read_dir(&path).unwrap() {
            let file = entry.unwrap().path();
            std::fs::copy(&file, target.join(file.file_name().unwrap())).unwrap();
        }
    }
}

//! Operations that would make the host wait for a GPU: reading numbers, and tensors whose size depends on numbers. They are counted
//! on a CPU, among libtorch's operations. Masks are on the CPU in every run, so that reading them needs no such operation.

use std::num::NonZeroU32;
use std::rc::Rc;

use elf_flow::sampler::{BUILTIN, Registry, SamplerChoice};
use elf_flow::{ElfObjective, FlowPath, GenerateConfig, Generator, PredictionTarget, Request, TrainedFlow};
use elf_kernels::observe::{HOST_WAITS, Operations, operations};
use elf_tests::small::{batch, network};
use elf_train::optim::{AdamWConfig, MuonConfig, OptimizerConfig};
use elf_train::{Schedule, Solo, Trainer, TrainerConfig};

const ROWS: i64 = 6;
const LENGTH: i64 = 8;

/// The operations that were seen, for a message.
fn named(seen: &Operations) -> Vec<(&str, u64)> {
    seen.iter().filter(|(name, _)| HOST_WAITS.contains(name)).collect()
}

#[test]
fn a_training_step_waits_for_nothing() {
    for optimizer in [OptimizerConfig::Muon(MuonConfig::default()), OptimizerConfig::Adamw(AdamWConfig::default())] {
        let config = TrainerConfig {
            optimizer,
            schedule: Schedule::constant(0.01, 2),
            clip_norm: Some(1.0),
            ema_decay: 0.9,
            accumulation: NonZeroU32::new(2).unwrap(),
            seed: 7,
        };
        let objective = ElfObjective { decoder_prob: 0.4, ..ElfObjective::default() };
        let mut trainer = Trainer::new(network(), objective, config, Rc::new(Solo)).unwrap();
        for step in 0..3 {
            let batches = [0, 1].map(|micro| Ok(batch(trainer.net(), 2 * step + micro, ROWS, LENGTH)));
            let (report, seen) = operations(|| trainer.step(batches).unwrap().unwrap());
            assert!(seen.total() > 100, "a step is seen: {} operations", seen.total());
            assert_eq!(seen.host_waits(), 0, "step {step}: {:?}", named(&seen));
            // The caller decides when the loss is read; that may be after the next step has been queued.
            report.read().unwrap();
        }
    }
}

#[test]
fn sampling_waits_for_nothing_from_step_to_step() {
    let net = network();
    let trained = TrainedFlow {
        path: FlowPath { noise_scale: 2.0, t_eps: 0.05, prediction: PredictionTarget::Clean },
        self_conditioned: true,
        block_size: None,
    };
    for sampler in BUILTIN.iter().map(|entry| entry.name()) {
        let waits = |steps| {
            let config = GenerateConfig { sampler: SamplerChoice::named(sampler), steps, ..GenerateConfig::default() };
            let generator = Generator::new(&net, trained, config, &Registry::builtin()).unwrap();
            let request = Request::new(&[1, 2, 3], LENGTH);
            operations(|| generator.generate(&request, &mut ()).unwrap()).1
        };
        let (short, long) = (waits(3), waits(11));
        assert!(long.total() > 2 * short.total(), "steps are seen");
        assert_eq!(long.host_waits(), short.host_waits(), "{sampler}: {:?}, {:?}", named(&short), named(&long));
        assert_eq!(short.host_waits(), 0, "{sampler}: {:?}", named(&short));
    }
}

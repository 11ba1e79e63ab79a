//! Results and gradients do not depend on how rows are shared among a CPU's threads.

use elf_core::{Network, PrecisionPolicy, TrunkInput};
use elf_model::{Elf, ElfConfig, Preset};
use tch::{Device, Kind, Tensor};

const ROWS: i64 = 6;
const POSITIONS: i64 = 16;

fn numbers(shape: &[i64], step: f64) -> Tensor {
    (Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)) * step).sin().view(shape)
}

/// A way through the network, to hidden states.
type Run<'a> = &'a dyn Fn(&Elf) -> Tensor;

/// A pass over all rows with this many threads: the hidden states, and the gradients of all parameters that have one.
fn pass(net: &Elf, threads: i32, run: Run) -> (Tensor, Vec<(String, Tensor)>) {
    tch::set_num_threads(threads);
    net.params().zero_grad();
    let hidden = run(net);
    (&hidden * numbers(&hidden.size(), 0.37)).sum(Kind::Float).backward();
    let gradient = |p: &Tensor| p.grad().defined().then(|| p.grad().copy());
    let found = net.params().iter().filter_map(|(name, p)| Some((name.to_owned(), gradient(&p.tensor)?)));
    (hidden.detach(), found.collect())
}

fn near(what: &str, a: &Tensor, b: &Tensor) {
    let (difference, scale) = ((a - b).abs().max().double_value(&[]), b.abs().max().double_value(&[]));
    assert!(difference <= 1e-5 * scale.max(1.0), "{what}: {difference} of {scale}");
}

#[test]
fn training_rows_side_by_side_have_the_gradients_of_rows_together() {
    let config = ElfConfig {
        hidden_size: 32,
        depth: 3,
        num_heads: 2,
        bottleneck_dim: 8,
        num_time_tokens: 2,
        num_self_cond_cfg_tokens: 1,
        num_model_mode_tokens: 1,
        context_table: true,
        ..Preset::B.config(6, 40)
    };
    let net = Elf::new(config, PrecisionPolicy::F32, 5, Device::Cpu).unwrap();
    net.params().set_requires_grad(true);
    let (z, t) = (numbers(&[ROWS, POSITIONS, 6], 0.7), (numbers(&[ROWS], 0.9) + 1.0) / 2.0);
    // Conditions of different lengths give each row angles of its own.
    let place = Tensor::arange(POSITIONS, (Kind::Int64, Device::Cpu));
    let given = Tensor::arange(ROWS, (Kind::Int64, Device::Cpu)).unsqueeze(1).remainder(4);
    let words = Tensor::full([ROWS, POSITIONS], -1, (Kind::Int64, Device::Cpu));
    let words = words.where_self(&place.unsqueeze(0).ge_tensor(&given), &(&place + 3).expand([ROWS, POSITIONS], false));
    let mask = place.unsqueeze(0).lt_tensor(&(given + 3)).to_kind(Kind::Float);
    let plain = |net: &Elf| net.trunk(&TrunkInput { x_prev: Some(&z), ..TrunkInput::new(&z, &t) }).unwrap();
    let masked = |net: &Elf| net.trunk_with_mask(&TrunkInput::new(&z, &t), &mask).unwrap();
    let conditional = |net: &Elf| net.trunk(&TrunkInput { words: Some(&words), ..TrunkInput::new(&z, &t) }).unwrap();
    let kinds: [(&str, Run); 3] = [("plain", &plain), ("masked", &masked), ("conditional", &conditional)];
    for (what, run) in kinds {
        let (hidden, gradients) = pass(&net, 1, run);
        assert!(gradients.iter().filter(|(name, _)| name.starts_with("blocks.")).count() >= 3 * 10, "{what}");
        for threads in [2, 3] {
            let (again, found) = pass(&net, threads, run);
            near(what, &again, &hidden);
            assert_eq!(found.len(), gradients.len());
            for ((name, found), (_, expected)) in found.iter().zip(&gradients) {
                near(&format!("{what}, {threads} threads: {name}"), found, expected);
            }
            let (_, same) = pass(&net, threads, run);
            assert_eq!(found, same, "{what}: gradients differ between two passes with {threads} threads");
        }
    }
}

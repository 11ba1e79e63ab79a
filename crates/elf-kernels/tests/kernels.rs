//! The kernels for GPUs, as a CPU runs them, against the plain forms: values and gradients.

use elf_kernels::kernels::{self, Law};
use elf_kernels::observe::operations;
use elf_kernels::{Heads, Turned, plain};
use tch::{Device, Kind, Tensor};

/// Numbers without a pattern that any of the operations could hide behind.
fn wave(shape: &[i64], from: f64) -> Tensor {
    let n: i64 = shape.iter().product();
    let at = Tensor::arange(n, (Kind::Float, Device::Cpu)) * 1.7 + from;
    (at.sin() * 1.5 + (at * 0.37).cos()).view(shape)
}

fn leaf(values: &Tensor) -> Tensor {
    values.copy().set_requires_grad(true)
}

/// Results, and the gradients of their weighted sum with respect to `inputs`, all in fp32. The weights of each result are rounded as
/// its gradient would be.
fn all(outputs: &[Tensor], inputs: &[&Tensor], kind: Kind) -> Vec<Tensor> {
    let weighted = |(i, y): (usize, &Tensor)| {
        (y.to_kind(Kind::Float) * wave(&y.size(), 0.3 + i as f64).to_kind(kind).to_kind(Kind::Float)).sum(Kind::Float)
    };
    let loss: Tensor = outputs.iter().enumerate().map(weighted).sum();
    let gradients = Tensor::run_backward(&[loss], inputs, false, false);
    outputs.iter().chain(&gradients).map(|t| t.detach().to_kind(Kind::Float)).collect()
}

/// Compares tensor by tensor: in fp32 to 1e-5 of the largest number, in bf16 each number to one rounding of itself.
fn agree(what: &str, kind: Kind, ours: &[Tensor], exact: &[Tensor]) {
    assert_eq!(ours.len(), exact.len());
    for (i, (a, b)) in ours.iter().zip(exact).enumerate() {
        assert_eq!(a.size(), b.size(), "{what}, tensor {i}");
        let largest = b.abs().max().double_value(&[]).max(1e-2);
        let (of_all, of_each) = if kind == Kind::Float { (1e-5, 0.0) } else { (1e-5, 1.0 / 256.0) };
        let room = b.abs() * of_each + largest * of_all;
        let excess = ((a - b).abs() / room).max().double_value(&[]);
        assert!(excess <= 1.0, "{what}, {kind:?}, tensor {i}: {excess} times what is allowed");
    }
}

/// Runs `ours` on inputs rounded to `kind` and `exact` on the same numbers in fp32; the last `weights` inputs stay in fp32.
fn compare(
    what: &str,
    inputs: &[Tensor],
    weights: usize,
    ours: impl Fn(&[Tensor]) -> Vec<Tensor>,
    exact: impl Fn(&[Tensor]) -> Vec<Tensor>,
) {
    for kind in [Kind::Float, Kind::BFloat16] {
        let activations = inputs.len() - weights;
        let of_kind = |(i, x): (usize, &Tensor)| leaf(&if i < activations { x.to_kind(kind) } else { x.copy() });
        let rounded: Vec<Tensor> = inputs.iter().enumerate().map(of_kind).collect();
        let wide: Vec<Tensor> = rounded.iter().map(|x| leaf(&x.detach().to_kind(Kind::Float))).collect();
        let results =
            |f: &dyn Fn(&[Tensor]) -> Vec<Tensor>, x: &[Tensor]| all(&f(x), &x.iter().collect::<Vec<_>>(), kind);
        let (ours, seen) = operations(|| results(&ours, &rounded));
        assert!(seen.launched_by("elf_") >= 2, "{what} takes the kernels");
        agree(what, kind, &ours, &results(&exact, &wide));
    }
}

#[test]
fn swiglu_agrees() {
    for shape in [vec![16], vec![3, 4, 32], vec![5, 208]] {
        let ours = |x: &[Tensor]| vec![kernels::swiglu(&x[0]).unwrap()];
        compare("swiglu", &[wave(&shape, 0.0) * 4.0], 0, ours, |x| vec![plain::swiglu(&x[0]).unwrap()]);
    }
    let far = Tensor::from_slice(&[-200f32, -20.0, 20.0, 200.0, 0.0, 1.0, f32::NAN, 2.0]).repeat([2]);
    let (ours, exact) = (kernels::swiglu(&far).unwrap(), plain::swiglu(&far).unwrap());
    assert!(ours.allclose(&exact, 1e-6, 1e-6, true));
}

#[test]
fn heads_agree() {
    for (batch, n, heads, dim) in [(2, 5, 3, 16), (1, 1, 1, 2), (3, 4, 2, 66), (2, 70, 2, 64), (1, 2, 1, 512)] {
        let angles = wave(&[n, dim / 2], 5.0);
        let (cos, sin) = (angles.cos(), angles.sin());
        let how = |f: fn(&Tensor, &Heads) -> Result<Turned, tch::TchError>, x: &[Tensor]| {
            let how = Heads { q_weight: &x[1], k_weight: &x[2], cos: &cos, sin: &sin, eps: 1e-6, q_scale: 0.25 };
            let Turned { q, k, v } = f(&x[0], &how).unwrap();
            vec![q, k, v]
        };
        let inputs = [wave(&[batch, n, 3, heads, dim], 0.0), wave(&[dim], 1.0), wave(&[dim], 4.0)];
        compare("heads", &inputs, 2, |x| how(kernels::heads, x), |x| how(plain::heads, x));
    }
}

#[test]
fn rms_norm_agrees_with_and_without_a_sum() {
    for shape in [vec![8], vec![3, 64], vec![2, 50, 768]] {
        let weight = wave(&shape[shape.len() - 1..], 2.0);
        let norm = |f: fn(&Tensor, &Tensor, f64, Kind) -> _, x: &[Tensor]| {
            vec![Result::<Tensor, tch::TchError>::unwrap(f(&x[0], &x[1], 1e-6, x[0].kind()))]
        };
        let inputs = [wave(&shape, 0.0), weight.shallow_clone()];
        compare("rms_norm", &inputs, 1, |x| norm(kernels::rms_norm, x), |x| norm(plain::rms_norm, x));
        // Sums that bf16 holds, so that both forms normalise the same numbers.
        let eighths = |from: f64| (wave(&shape, from) * 8.0).round() / 8.0;
        let inputs = [eighths(0.0), eighths(3.0), weight];
        let ours = |x: &[Tensor]| {
            let (sum, y) = kernels::add_rms_norm(&x[0], &x[1], &x[2], 1e-6, x[0].kind()).unwrap();
            vec![sum, y]
        };
        let exact = |x: &[Tensor]| {
            let (sum, y) = plain::add_rms_norm(&x[0], &x[1], &x[2], 1e-6, Kind::Float).unwrap();
            vec![sum, y]
        };
        compare("add_rms_norm", &inputs, 1, ours, exact);
    }
}

#[test]
fn rms_norm_may_change_the_kind() {
    let (x, w) = (wave(&[6, 40], 0.0), wave(&[40], 2.0));
    for (from, to) in [(Kind::Float, Kind::BFloat16), (Kind::BFloat16, Kind::Float)] {
        let (x, w) = (leaf(&x.to_kind(from)), leaf(&w));
        let ours = all(&[kernels::rms_norm(&x, &w, 1e-6, to).unwrap()], &[&x, &w], to);
        let (x, w) = (leaf(&x.detach().to_kind(Kind::Float)), leaf(&w));
        let exact = all(&[plain::rms_norm(&x, &w, 1e-6, Kind::Float).unwrap()], &[&x, &w], to);
        agree("rms_norm", Kind::BFloat16, &ours, &exact);
    }
}

#[test]
fn a_gradient_that_nobody_asks_for_is_none() {
    let (x, branch, w) = (leaf(&wave(&[2, 8], 0.0)), leaf(&wave(&[2, 8], 1.0)), leaf(&wave(&[8], 2.0)));
    let sum_alone = kernels::add_rms_norm(&x, &branch, &w, 1e-6, Kind::Float).unwrap().0;
    let given = Tensor::run_backward(&[sum_alone.sum(Kind::Float)], &[&x, &branch], false, false);
    assert!(given.iter().all(|g| g.equal(&Tensor::ones([2, 8], (Kind::Float, Device::Cpu)))));
    let qkv = leaf(&wave(&[1, 3, 3, 2, 8], 0.0));
    let turn = wave(&[3, 4], 3.0);
    let how = Heads { q_weight: &w, k_weight: &w, cos: &turn, sin: &turn, eps: 1e-6, q_scale: 1.0 };
    let v = kernels::heads(&qkv, &how).unwrap().v;
    let given = Tensor::run_backward(&[v.sum(Kind::Float)], &[&qkv], false, false);
    let expected = Tensor::zeros([1, 3, 3, 2, 8], (Kind::Float, Device::Cpu));
    let _ = expected.select(2, 2).fill_(1.0);
    assert!(given[0].equal(&expected));
}

#[test]
fn cross_entropy_agrees() {
    for (rows, vocab) in [(5i64, 38i64), (1, 2), (40, 20_000)] {
        let ids = (Tensor::arange(rows, (Kind::Int64, Device::Cpu)) * 7).remainder(vocab);
        let (bias, weights) = (wave(&[vocab], 3.0), wave(&[rows], 8.0).abs());
        for kind in [Kind::Float, Kind::BFloat16] {
            for weights in [None, Some(&weights)] {
                let mut ours = wave(&[rows, vocab], 0.0).to_kind(kind);
                let mut exact = ours.to_kind(Kind::Float).copy();
                let before = ours.copy();
                let (losses, none) = kernels::cross_entropy(&mut ours, &bias, &ids, weights, false).unwrap();
                assert!(none.is_none() && ours.equal(&before), "without slope nothing changes");
                let (again, slope) = kernels::cross_entropy(&mut ours, &bias, &ids, weights, true).unwrap();
                let (expected, of_bias) = plain::cross_entropy(&mut exact, &bias, &ids, weights, true).unwrap();
                let sums = [losses, again, slope.unwrap()];
                agree("losses", Kind::Float, &sums, &[expected.shallow_clone(), expected, of_bias.unwrap()]);
                agree("slopes", kind, &[ours.to_kind(Kind::Float)], &[exact]);
            }
        }
    }
    let (mut logits, bias) = (wave(&[2, 6], 0.0), wave(&[6], 1.0));
    let (losses, _) = kernels::cross_entropy(&mut logits, &bias, &Tensor::from_slice(&[0i64, 6]), None, true).unwrap();
    assert!(!losses.double_value(&[0]).is_nan() && losses.double_value(&[1]).is_nan());
}

#[test]
fn what_no_kernel_takes_goes_the_plain_way() {
    let (x, w) = (wave(&[3, 7], 0.0), wave(&[7], 1.0));
    let (y, seen) = operations(|| kernels::rms_norm(&x, &w, 1e-6, Kind::Float).unwrap());
    assert!(y.equal(&plain::rms_norm(&x, &w, 1e-6, Kind::Float).unwrap()) && seen.launched_by("elf_") == 0);
    let odd = wave(&[2, 6], 0.0);
    assert!(kernels::swiglu(&odd).unwrap().equal(&plain::swiglu(&odd).unwrap()));
    assert!(kernels::swiglu(&wave(&[5], 0.0)).unwrap_err().to_string().contains("even"));
}

#[test]
fn each_kernel_is_seen_as_one_launch() {
    let keys = Tensor::from_slice(&[3i64, 4]);
    let launches = |f: &dyn Fn()| operations(f).1.launches();
    assert_eq!(launches(&|| drop(kernels::draw(&keys, 9, Law::Normal, true).unwrap())), 1);
    assert_eq!(launches(&|| drop(kernels::draw(&keys, 9, Law::Normal, false).unwrap())), 0);
    let h = wave(&[4, 16], 0.0);
    assert_eq!(launches(&|| drop(kernels::swiglu(&h).unwrap())), 1);
}

/// Runs where there is an NVRTC, on a GPU's machine or not.
#[test]
fn kernels_compile_at_run_time_and_a_damaged_file_is_made_anew() {
    let folder = std::env::temp_dir().join(format!("elf-kernels-{}", std::process::id()));
    // SAFETY: no other test of this program reads the variable.
    unsafe { std::env::set_var("ELF_CACHE_DIR", &folder) };
    let made = match kernels::compile("sm_90") {
        Ok(bytes) => bytes,
        Err(reason) => return assert!(reason.contains("libnvrtc"), "{reason}"),
    };
    let kept = || std::fs::read_dir(folder.join("kernels")).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let [file] = &kept()[..] else { panic!("{:?}", kept()) };
    let content = std::fs::read(file).unwrap();
    assert_eq!(content.len(), made + 16);
    std::fs::write(file, &content[..content.len() / 2]).unwrap();
    assert_eq!(kernels::compile("sm_90"), Ok(made));
    assert_eq!(kept(), std::slice::from_ref(file));
    assert_eq!(std::fs::read(file).unwrap(), content);
    assert!(kernels::compile("sm_1").is_err());
    std::fs::remove_dir_all(&folder).unwrap();
}

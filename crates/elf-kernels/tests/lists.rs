//! Operations on lists against the same operations one by one, and the switch of the way for GPUs.

use elf_kernels::{AdamStep, MomentumStep, adam, lists, momentum, on_gpu_path, takes_gpu_path};
use tch::{Device, Kind, Tensor};

fn wave(shape: &[i64], from: f64) -> Tensor {
    let n: i64 = shape.iter().product();
    ((Tensor::arange(n, (Kind::Float, Device::Cpu)) * 1.3 + from).sin() * 1.5).view(shape)
}

/// Tensors of several shapes, one of them empty.
fn several(from: f64) -> Vec<Tensor> {
    [vec![3, 4], vec![7], vec![2, 1, 5], vec![0]]
        .iter()
        .zip(0..)
        .map(|(shape, i)| wave(shape, from + f64::from(i)))
        .collect()
}

fn copies(list: &[Tensor]) -> Vec<Tensor> {
    list.iter().map(Tensor::copy).collect()
}

fn close(a: &[Tensor], b: &[Tensor]) -> bool {
    let far = |(a, b): (&Tensor, &Tensor)| a.numel() > 0 && (a - b).abs().max().double_value(&[]) > 1e-6;
    a.len() == b.len() && !a.iter().zip(b).any(far)
}

#[test]
fn a_list_is_its_tensors_one_by_one() {
    let (p, g, m) = (several(0.0), several(1.0), several(2.0));
    let v: Vec<Tensor> = several(3.0).iter().map(Tensor::square).collect();
    for (of_grad, keep) in [(0.4, 0.9), (0.0, 1.0)] {
        let step = AdamStep { b1: 0.9, b2: 0.99, eps: 1e-8, of_first: 1.3, of_grad, of_second: 2.0, lr: 0.1, keep };
        let (p1, m1, v1) = (copies(&p), copies(&m), copies(&v));
        lists::adam(&p1, &g, &m1, &v1, step).unwrap();
        let (mut p2, mut m2, mut v2) = (copies(&p), copies(&m), copies(&v));
        for i in 0..p.len() {
            adam(&mut p2[i], &g[i], &mut m2[i], &mut v2[i], step).unwrap();
        }
        assert!(close(&p1, &p2) && close(&m1, &m2) && close(&v1, &v2));
    }

    let step = MomentumStep { decay: 0.95, ahead: 0.9, now: 0.2 };
    let (m1, mut m2) = (copies(&m), copies(&m));
    let together = lists::momentum(&m1, &g, step).unwrap();
    let alone: Vec<Tensor> = m2.iter_mut().zip(&g).map(|(m, g)| momentum(m, g, step, Kind::Float).unwrap().0).collect();
    assert!(close(&m1, &m2) && close(&together, &alone));

    let p1 = copies(&p);
    lists::lerp(&p1, &g, 0.25).unwrap();
    lists::add_scaled(&p1, &m, -0.5).unwrap();
    lists::scale(&p1, &Tensor::from(3.0f32)).unwrap();
    let expected: Vec<Tensor> = (0..p.len()).map(|i| ((&p[i] * 0.75 + &g[i] * 0.25) - &m[i] * 0.5) * 3.0).collect();
    assert!(close(&p1, &expected));
    let norms = lists::norms(&p1).unwrap();
    assert!(close(&[norms], &[Tensor::stack(&p1.iter().map(Tensor::norm).collect::<Vec<_>>(), 0)]));
    lists::zero(&p1).unwrap();
    assert!(p1.iter().all(|x| x.abs().sum(Kind::Float).double_value(&[]) == 0.0));
}

#[test]
fn an_empty_list_is_left_alone_and_unequal_ones_are_refused() {
    lists::lerp(&[], &[], 0.5).unwrap();
    lists::zero(&[]).unwrap();
    lists::scale(&[], &Tensor::from(1.0f32)).unwrap();
    let message = lists::lerp(&several(0.0), &several(0.0)[1..], 0.5).unwrap_err().to_string();
    assert!(message.contains("different lengths"), "{message}");
}

#[test]
fn forgotten_gradients_are_handed_over_anew() {
    let x = wave(&[4], 0.0).set_requires_grad(true);
    (&x * 2.0).sum(Kind::Float).backward();
    lists::forget_gradients(&[x.shallow_clone()]).unwrap();
    assert!(!x.grad().defined());
    (&x * 3.0).sum(Kind::Float).backward();
    assert!(x.grad().equal(&(Tensor::ones([4], (Kind::Float, Device::Cpu)) * 3.0)));
}

#[test]
fn the_way_for_gpus_is_taken_inside_only_and_by_this_thread_only() {
    let here = || takes_gpu_path(Device::Cpu);
    assert!(!here() && takes_gpu_path(Device::Cuda(0)));
    on_gpu_path(|| {
        assert!(here() && on_gpu_path(here) && here());
        assert!(!std::thread::spawn(|| takes_gpu_path(Device::Cpu)).join().unwrap());
    });
    assert!(std::panic::catch_unwind(|| on_gpu_path(|| panic!("broken"))).is_err());
    assert!(!here());
}

//! A part that is run again in the backward pass gives the same numbers as one that is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use elf_kernels::recompute;
use tch::{Device, Kind, TchError, Tensor};

fn leaf(n: i64, from: f64) -> Tensor {
    (Tensor::arange(n, (Kind::Float, Device::Cpu)) + from).sin().set_requires_grad(true)
}

#[test]
fn values_and_gradients_are_those_of_the_kept_part() {
    let (x, w) = (leaf(6, 0.0), leaf(6, 2.0));
    let part = |x: &Tensor, w: &Tensor| (x * w).tanh() * w;
    let loss = |y: Tensor| (y * leaf(6, 9.0)).sum(Kind::Float);
    loss(part(&(&x * 2.0), &w)).backward();
    let kept = [x.grad().copy(), w.grad().copy()];
    x.shallow_clone().zero_grad();
    w.shallow_clone().zero_grad();

    let runs = Arc::new(AtomicUsize::new(0));
    let (count, weight) = (Arc::clone(&runs), w.shallow_clone());
    let again = recompute(&(&x * 2.0), move |x| {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(part(x, &weight))
    });
    let again = again.unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    loss(again).backward();
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    assert!(x.grad().equal(&kept[0]) && w.grad().equal(&kept[1]));
    assert_eq!(Arc::strong_count(&runs), 1, "the part is dropped with its graph");
}

#[test]
fn a_part_that_fails_is_an_error_in_both_passes() {
    let x = leaf(3, 0.0);
    let fails = |_: &Tensor| Err(TchError::Shape("no such shape".to_owned()));
    assert!(recompute(&x, fails).unwrap_err().to_string().contains("no such shape"));
    let panics = |_: &Tensor| -> Result<Tensor, TchError> { panic!("out of its depth") };
    assert!(recompute(&x, panics).unwrap_err().to_string().contains("out of its depth"));

    let runs = AtomicUsize::new(0);
    let second = move |x: &Tensor| match runs.fetch_add(1, Ordering::SeqCst) {
        0 => Ok(x * 2.0),
        _ => Err(TchError::Shape("only once".to_owned())),
    };
    let y = recompute(&x, second).unwrap().sum(Kind::Float);
    assert!(y.f_backward().unwrap_err().to_string().contains("only once"));
}

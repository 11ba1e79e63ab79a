//! What is told of libtorch's operations.

use elf_kernels::observe::operations;
use tch::{Device, Kind, Tensor};

#[test]
fn operations_are_counted_backward_ones_too_and_only_meanwhile() {
    let x = Tensor::ones([3, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let _ = x.mm(&x);
    let (y, seen) = operations(|| x.mm(&x).sum(Kind::Float));
    assert_eq!((seen.of("aten::mm"), seen.host_waits()), (1, 0));
    let ((), seen) = operations(|| y.backward());
    assert_eq!(seen.of("aten::mm"), 2, "a product has two gradients");
    let (_, seen) = operations(|| ());
    assert_eq!(seen.total(), 0);
}

#[test]
fn what_the_host_waits_for_is_told_apart() {
    let x = Tensor::arange(4, (Kind::Float, Device::Cpu));
    let waits = |f: &dyn Fn() -> Tensor| operations(f).1;
    assert_eq!(operations(|| x.double_value(&[1])).1.host_waits(), 1);
    assert_eq!(waits(&|| x.gt(1.0).nonzero()).of("aten::nonzero"), 1);
    assert!(waits(&|| x.masked_select(&x.gt(1.0))).host_waits() >= 1);
    assert!(waits(&|| x.f_index(&[Some(x.gt(1.0))]).unwrap()).host_waits() >= 1);
    assert_eq!(waits(&|| x.where_self(&x.gt(1.0), &(&x * 2.0))).host_waits(), 0);
}

#[test]
fn launches_are_those_of_operations_that_call_no_other() {
    let x = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
    let launches = |f: &dyn Fn() -> Tensor| operations(f).1.launches();
    assert_eq!(launches(&|| &x + &x), 1);
    assert_eq!(launches(&|| x.view([16]).narrow(0, 0, 4).unsqueeze(0)), 0, "views launch nothing");
    assert_eq!(launches(&|| x.mm(&x)), 1);
    assert_eq!(launches(&|| x.linear(&x, Some(&x.get(0)))), 1, "a bias is added by the product");
    let list = [x.copy(), x.copy(), x.copy()];
    let (_, seen) = operations(|| elf_kernels::lists::zero(&list).unwrap());
    assert_eq!(seen.launches_by_operation(), [("aten::_foreach_zero_", 2)], "a list counts as one operation");
}

#[test]
fn bytes_are_those_of_inputs_and_results() {
    let (x, y) =
        (Tensor::ones([4, 4], (Kind::Float, Device::Cpu)), Tensor::ones([4, 4], (Kind::BFloat16, Device::Cpu)));
    let bytes = |f: &dyn Fn() -> Tensor| operations(f).1.bytes();
    assert_eq!(bytes(&|| &x + &y), 64 + 32 + 64);
    assert_eq!(bytes(&|| &x * &x), 64 + 64, "the same input is read once");
    assert_eq!(bytes(&|| &x + x.get(0)), 64 + 16 + 64);
    assert_eq!(bytes(&|| &x + x.get(0).expand([4, 4], false)), 64 + 16 + 64, "what repeats is read once");
    assert_eq!(bytes(&|| x.linear(&x, Some(&x.get(0)))), 16 + 64 + 64);
    assert_eq!(bytes(&|| x.view([16]).narrow(0, 0, 4).unsqueeze(0)), 0, "views move nothing");
    let weight = Tensor::ones([16], (Kind::Float, Device::Cpu));
    let rows = Tensor::ones([3, 16], (Kind::BFloat16, Device::Cpu));
    let normed = || elf_kernels::on_gpu_path(|| elf_kernels::rms_norm(&rows, &weight, 1e-6, Kind::BFloat16).unwrap());
    assert_eq!(bytes(&normed), 3 * 32 + 64 + 3 * 32 + 3 * 4, "rows, weight, result, and a root for each row");
}

#[test]
fn observing_ends_when_what_is_observed_panics() {
    let broken = std::panic::catch_unwind(|| operations(|| panic!("broken")));
    assert!(broken.is_err());
    let (_, seen) = operations(|| Tensor::ones([1], (Kind::Float, Device::Cpu)));
    assert!(seen.total() > 0);
}

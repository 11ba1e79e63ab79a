//! 8-bit linear layers against the same roundings made with libtorch's plain operations.

use elf_kernels::Int8Matrix;
use tch::{Device, Kind, Tensor};

/// Whether this processor has exact 8-bit products; tests say so and end if not.
fn has_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    if !has {
        eprintln!("skipped: this processor has no 8-bit dot products (VNNI)");
    }
    has
}

/// Numbers `[.., n]` rounded to 127ths of the largest of their row.
fn rounded(x: &Tensor) -> Tensor {
    let scale = x.abs().amax([-1i64], true).clamp_min(1e-30) / 127.0;
    (x / &scale).round() * scale
}

fn largest(x: &Tensor) -> f64 {
    x.abs().max().double_value(&[])
}

#[test]
fn values_are_those_of_the_rounded_numbers() {
    if !has_products() {
        return;
    }
    tch::manual_seed(1);
    for (shape, n, channels) in
        [(vec![3i64, 5], 64i64, 48i64), (vec![1], 768, 2304), (vec![37], 682, 17), (vec![2, 1, 4], 16, 1)]
    {
        let x = Tensor::randn([&shape[..], &[n]].concat(), (Kind::Float, Device::Cpu));
        let w = Tensor::randn([channels, n], (Kind::Float, Device::Cpu));
        let bias = Tensor::randn([channels], (Kind::Float, Device::Cpu));
        let matrix = Int8Matrix::new(&w).unwrap();
        for bias in [None, Some(&bias)] {
            let ours = matrix.linear(&x, bias).unwrap();
            let exact = rounded(&x)
                .to_kind(Kind::Double)
                .linear(&rounded(&w).to_kind(Kind::Double), bias.map(|b| b.to_kind(Kind::Double)));
            assert_eq!(ours.size(), exact.size());
            assert!(largest(&(&ours - &exact)) < 1e-5 * largest(&exact), "{shape:?} {n} {channels}");
            let wide = x.linear(&w, bias);
            let error = ((&ours - &wide).square().sum(Kind::Float) / wide.square().sum(Kind::Float)).sqrt();
            assert!(error.double_value(&[]) < 0.02);
            let low = matrix.linear(&x.to_kind(Kind::BFloat16), bias).unwrap();
            assert_eq!(low.kind(), Kind::BFloat16);
            let of_low = matrix.linear(&x.to_kind(Kind::BFloat16).to_kind(Kind::Float), bias).unwrap();
            assert_eq!(low, of_low.to_kind(Kind::BFloat16));
        }
    }
}

/// A token's result depends on that token alone, wherever in a batch it stands.
#[test]
fn rows_are_independent() {
    if !has_products() {
        return;
    }
    tch::manual_seed(2);
    let x = Tensor::randn([23, 96], (Kind::Float, Device::Cpu));
    let matrix = Int8Matrix::new(&Tensor::randn([40, 96], (Kind::Float, Device::Cpu))).unwrap();
    let all = matrix.linear(&x, None).unwrap();
    for i in 0..23 {
        assert_eq!(matrix.linear(&x.narrow(0, i, 1), None).unwrap(), all.narrow(0, i, 1));
    }
}

#[test]
fn zeros_stay_and_what_is_no_number_is_not_hidden() {
    if !has_products() {
        return;
    }
    let x =
        Tensor::from_slice(&[0f32, 0.0, 0.0, f32::NAN, 1.0, 2.0, f32::INFINITY, 1.0, 2.0, 1.0, 2.0, -4.0]).view([4, 3]);
    let matrix = Int8Matrix::new(&Tensor::from_slice(&[1f32, 0.0, 0.0, 0.0, 0.0, 0.0]).view([2, 3])).unwrap();
    let y = matrix.linear(&x, None).unwrap();
    assert_eq!(Vec::<f32>::try_from(y.get(0)).unwrap(), [0.0, 0.0]);
    assert!(y.narrow(0, 1, 2).isnan().all().int64_value(&[]) == 1);
    assert!((y.double_value(&[3, 0]) - 1.0).abs() < 0.02);
    assert_eq!(y.double_value(&[3, 1]), 0.0);
}

#[test]
fn what_does_not_fit_is_refused() {
    assert!(Int8Matrix::new(&Tensor::zeros([3], (Kind::Float, Device::Cpu))).is_err());
    if !has_products() {
        return;
    }
    let matrix = Int8Matrix::new(&Tensor::ones([4, 8], (Kind::Float, Device::Cpu))).unwrap();
    assert!(matrix.linear(&Tensor::ones([2, 7], (Kind::Float, Device::Cpu)), None).is_err());
    assert!(matrix.linear(&Tensor::ones([2, 8], (Kind::Int64, Device::Cpu)), None).is_err());
    let bias = Tensor::ones([3], (Kind::Float, Device::Cpu));
    assert!(matrix.linear(&Tensor::ones([2, 8], (Kind::Float, Device::Cpu)), Some(&bias)).is_err());
}

//! A row of a product depends neither on where in the batch it stands nor on the size of the batch, with the code that the program `elf`
//! has MKL take.

use elf_kernels::mkl::{Code, rows_stand_alone, use_vector_code};
use tch::{Device, Kind, Tensor};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

/// One test alone in its process: what MKL has computed before would decide which code it takes.
#[test]
fn rows_of_a_product_do_not_depend_on_others() {
    let code = use_vector_code();
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if tch::utils::has_mkl() && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        assert_ne!(code, Code::Own, "MKL does not do as it is told");
    }
    // Where MKL or the user decides, nothing is promised.
    if matches!(code, Code::Own | Code::Users) {
        return;
    }
    assert!(rows_stand_alone());
    let mut differing = Vec::new();
    for inner in [32, 64, 256, 768] {
        for columns in [32, 96, 256, 512] {
            for rows in [4, 8, 24, 40, 64, 100, 256] {
                let (a, b) = (Tensor::randn([rows, inner], F32), Tensor::randn([columns, inner], F32).tr());
                let order = Tensor::randperm(rows, (Kind::Int64, Device::Cpu));
                let (here, there) = (a.mm(&b).index_select(0, &order), a.index_select(0, &order).mm(&b));
                let few = (rows + 2) / 3;
                if here != there || a.narrow(0, 0, few).mm(&b) != a.mm(&b).narrow(0, 0, few) {
                    differing.push([rows, inner, columns]);
                }
            }
        }
    }
    assert!(differing.is_empty(), "with {code:?} rows depend on others in {} products: {differing:?}", differing.len());
}

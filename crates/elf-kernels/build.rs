//! Compiles `cpp/` against the headers of the libtorch that torch-sys links, with torch-sys's flags.

use std::env;
use std::path::PathBuf;
use std::process::exit;

/// Name of a variant of `rows.cpp`, and the processor features that it may use.
const X86_VARIANTS: [(&str, &[&str]); 2] = [
    ("avx2", &["-mavx2", "-mfma"]),
    ("avx512", &["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"]),
];

fn main() {
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-changed=cuda");
    for name in ["LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let Some(lib) = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        println!("cargo:warning=torch-sys does not say where libtorch lies; is it another version?");
        exit(1);
    };
    let root = env::var_os("LIBTORCH_INCLUDE").map(PathBuf::from);
    let root = root.or_else(|| lib.parent().map(PathBuf::from)).unwrap_or_else(|| lib.clone());
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    let out = kernels_source();
    cpp()
        .include(out)
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .define("GLOG_USE_GLOG_EXPORT", None)
        .flag_if_supported("-fopenmp")
        .file("cpp/fused.cpp")
        .file("cpp/gpu_forms.cpp")
        .file("cpp/gpu_kernels.cpp")
        .file("cpp/int8.cpp")
        .file("cpp/launch.cpp")
        .file("cpp/lists.cpp")
        .file("cpp/mkl.cpp")
        .file("cpp/observe.cpp")
        .compile("elf_fused");
    rows("base", &[]);
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        X86_VARIANTS.iter().for_each(|(name, features)| rows(name, features));
    }
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}

/// Writes the source of the kernels as a string of C++, for NVRTC; gives its folder.
fn kernels_source() -> PathBuf {
    let out = env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
    let written = std::fs::read_to_string("cuda/kernels.cuh").and_then(|source| {
        let text = format!("static const char KERNELS_SOURCE[] = R\"kernels({source})kernels\";\n");
        std::fs::write(out.join("elf_kernels_source.h"), text)
    });
    if let Err(error) = written {
        println!("cargo:warning=the source of the kernels cannot be copied: {error}");
        exit(1);
    }
    out
}

fn cpp() -> cc::Build {
    let mut build = cc::Build::new();
    // libtorch is compiled with NDEBUG, and some of its classes have fewer members so.
    build.cpp(true).pic(true).warnings(false).std("c++17").opt_level(3).define("NDEBUG", None);
    build
}

/// One variant. Sums may be taken in any order, which is what lets a compiler use vectors for them; what is infinite or no
/// number is still treated as such.
fn rows(isa: &str, features: &[&str]) {
    let mut build = cpp();
    build.define("ELF_ISA", isa).file("cpp/rows.cpp");
    // Not one by one if supported: -fassociative-math alone, without the two before it, is refused with a warning.
    if !build.get_compiler().is_like_msvc() {
        ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"]
            .iter()
            .for_each(|flag| _ = build.flag(flag));
    }
    features.iter().for_each(|flag| _ = build.flag(flag));
    build.compile(&format!("elf_rows_{isa}"));
}

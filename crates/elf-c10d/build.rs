//! Compiles `cpp/c10d.cpp` against the headers of the libtorch that torch-sys links, with torch-sys's flags.

use std::env;
use std::path::PathBuf;

fn main() {
    for path in ["cpp/c10d.cpp", "cpp/c10d.h", "cpp/gloo_declarations"] {
        println!("cargo:rerun-if-changed={path}");
    }
    for name in ["LIBTORCH_INCLUDE", "LIBTORCH_CXX11_ABI"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let Some(lib) = env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from) else {
        println!("cargo:warning=torch-sys does not say where libtorch lies; is it another version?");
        std::process::exit(1);
    };
    let root = env::var_os("LIBTORCH_INCLUDE")
        .map(PathBuf::from)
        .or_else(|| lib.parent().map(PathBuf::from))
        .unwrap_or_else(|| lib.clone());
    let include = root.join("include");
    if !include.join("torch/csrc/distributed/c10d/ProcessGroupGloo.hpp").exists() {
        println!(
            "cargo:warning={} has no c10d headers: use libtorch 2.11.0 from the torch wheel (`cargo xtask setup`)",
            include.display()
        );
        std::process::exit(1);
    }
    let abi = env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .include("cpp/gloo_declarations")
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .define("GLOG_USE_GLOG_EXPORT", None)
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        .file("cpp/c10d.cpp")
        .compile("elf_c10d");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}

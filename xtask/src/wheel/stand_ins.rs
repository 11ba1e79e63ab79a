//! Stand-ins for the libraries of CUDA: one library that has the names of all functions that torch looks up when it is
//! loaded, and stops the process if one is called. With them torch's CPU part works without the gigabytes of CUDA.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Libraries of the system, by the beginnings of their names.
const SYSTEM: [&str; 8] = ["libpthread.", "libm.", "libdl.", "libc.", "librt.", "libgcc_s.", "libstdc++.", "ld-linux"];
/// Libraries that are fetched with torch, by the beginnings of their names; these are also their symbols' versions.
const PRESENT: [&str; 2] = ["libcudart.", "libcupti."];
/// Beginnings of the versions of the system's symbols.
const SYSTEM_VERSIONS: [&str; 6] = ["GLIBC", "GCC", "CXXABI", "GLIBCXX", "GOMP", "OMP"];
/// Beginnings of the names of functions of CUDA that have no version.
const PREFIXES: [&str; 3] = ["cu", "nccl", "nvshmem"];
/// The library itself; the others are links to it.
const FILE: &str = "libcuda-stand-in.so";

/// What torch's libraries look up and do not have.
#[derive(Debug, Default)]
struct Missing {
    libraries: BTreeSet<String>,
    /// Functions by the version of their symbols; the empty one stands for none.
    functions: BTreeMap<String, BTreeSet<String>>,
}

impl Missing {
    /// Of the libraries in a folder.
    fn from_libraries(folder: &Path) -> Result<Self> {
        let (mut missing, mut present) = (Self::default(), BTreeSet::new());
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_file() && name.contains(".so") {
                present.insert(name);
                missing.add_libraries(&output("readelf", "-dW", &path)?);
                missing.add_functions(&output("nm", "-D", &path)?);
            }
        }
        missing.libraries.retain(|name| !present.contains(name));
        Ok(missing)
    }

    /// Takes over what `readelf -d` prints.
    fn add_libraries(&mut self, text: &str) {
        let needed = text.lines().filter(|line| line.contains("(NEEDED)"));
        let names = needed.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0));
        let is_missing = |name: &&str| !SYSTEM.iter().chain(&PRESENT).any(|known| name.starts_with(known));
        self.libraries.extend(names.filter(is_missing).map(str::to_owned));
    }

    /// Takes over what `nm -D` prints.
    fn add_functions(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace().rev();
            let (Some(symbol), Some("U")) = (words.next(), words.next()) else { continue };
            let (name, version) = symbol.split_once('@').unwrap_or((symbol, ""));
            let version = version.trim_start_matches('@');
            let is_missing = match version {
                "" => PREFIXES.iter().any(|prefix| name.starts_with(prefix)),
                _ => !SYSTEM_VERSIONS.iter().chain(&PRESENT).any(|known| version.starts_with(known)),
            };
            if is_missing {
                self.functions.entry(version.to_owned()).or_default().insert(name.to_owned());
            }
        }
    }

    /// C with all functions.
    fn source(&self) -> String {
        let names: BTreeSet<&String> = self.functions.values().flatten().collect();
        names.into_iter().fold(String::new(), |mut text, name| {
            let _ = writeln!(text, "void {name}(void) {{ __builtin_trap(); }}");
            text
        })
    }

    /// The linker's script with their versions.
    fn versions(&self) -> String {
        self.functions.iter().filter(|(version, _)| !version.is_empty()).fold(
            String::new(),
            |mut text, (version, names)| {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let _ = writeln!(text, "{version} {{ global: {}; }};", names.join("; "));
                text
            },
        )
    }
}

/// Makes the stand-ins in `folder` for the libraries of torch in another one.
///
/// # Errors
/// If the compiler or binutils are missing, or fail.
pub fn make(libraries: &Path, folder: &Path) -> Result<()> {
    let missing = Missing::from_libraries(libraries)?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let (source, script, versions) = (folder.join("functions.c"), folder.join("versions.map"), missing.versions());
    fs::write(&source, missing.source())?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-nostdlib", "-w", "-o"]).arg(folder.join(FILE)).arg(&source);
    // The linker refuses an empty script.
    if !versions.is_empty() {
        fs::write(&script, versions)?;
        compiler.arg(format!("-Wl,--version-script={}", script.display()));
    }
    crate::steps::run(&mut compiler).context("the stand-ins for CUDA's libraries cannot be made")?;
    for name in &missing.libraries {
        std::os::unix::fs::symlink(FILE, folder.join(name))?;
    }
    Ok(())
}

/// What a program of binutils prints about a file.
fn output(program: &str, option: &str, file: &Path) -> Result<String> {
    let output = Command::new(program).arg(option).arg(file).stderr(Stdio::null()).output();
    let output = output.with_context(|| format!("{program} cannot be started: install binutils"))?;
    if !output.status.success() {
        bail!("{program} cannot read {}", file.display());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_found() {
        let mut missing = Missing::default();
        missing.add_libraries(
            " 0x01 (NEEDED)  Shared library: [libcublas.so.13]\n 0x01 (NEEDED)  Shared library: [libc.so.6]\n \
             0x01 (NEEDED)  Shared library: [libcudart.so.13]\n 0x0f (RPATH)  Library rpath: [$ORIGIN]\n",
        );
        missing.add_functions(
            "                 U cublasCreate_v2@libcublas.so.13\n                 U memcpy@GLIBC_2.14\n \
             U ncclSend\n 0000000000001000 T own\n U _ZN3c104fineEv\n U cudaFree@libcudart.so.13\n",
        );
        assert_eq!(missing.libraries.iter().collect::<Vec<_>>(), ["libcublas.so.13"]);
        let source = missing.source();
        assert!(source.contains("void cublasCreate_v2(void)") && source.contains("void ncclSend(void)"), "{source}");
        assert_eq!(source.lines().count(), 2);
        assert_eq!(missing.versions(), "libcublas.so.13 { global: cublasCreate_v2; };\n");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_library_loads_with_its_stand_in() {
        if ["cc", "nm", "readelf"].iter().any(|name| Command::new(name).arg("--version").output().is_err()) {
            println!("skipped: without a compiler and binutils");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let compile = |arguments: &[&str], source: &str, to: &Path| {
            let path = at("source.c");
            fs::write(&path, source).unwrap();
            let mut compiler = Command::new("cc");
            compiler.args(arguments).arg("-o").arg(to).arg(path).args(["-L", "."]).current_dir(folder.path());
            assert!(compiler.status().unwrap().success());
        };
        fs::create_dir(at("lib")).unwrap();
        compile(&["-shared", "-Wl,-soname,libcublas.so.13"], "void cublasCreate_v2(void) {}", &at("libcublas.so.13"));
        compile(
            &["-shared", "-fPIC", "-Wl,--no-as-needed", "libcublas.so.13"],
            "void cublasCreate_v2(void); void f(void) { cublasCreate_v2(); }",
            &at("lib/libuser.so"),
        );
        make(&at("lib"), &at("stand-ins")).unwrap();
        assert!(at("stand-ins/libcublas.so.13").exists());
        let program = "#include <dlfcn.h>\nint main(int n, char **a) { return dlopen(a[1], RTLD_NOW) ? 0 : 1; }";
        compile(&["-ldl"], program, &at("load"));
        let loads = |folder: &str| {
            let mut program = Command::new(at("load"));
            program.arg(at("lib/libuser.so")).env("LD_LIBRARY_PATH", at(folder)).status().unwrap().success()
        };
        assert!(loads("stand-ins") && !loads("lib"));
    }
}

//! `elf serve` asked by the `openai` package of Python, as its users ask it. Skipped, with a message, where Python or the
//! package is not to be had.

mod server;
mod tiny_run;

use std::path::{Path, PathBuf};
use std::process::Command;

use server::Server;

/// A folder of Python with the package, made once and kept with the build.
fn python() -> Result<PathBuf, String> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-client");
    let python = home.join("bin/python");
    let has_package = || Command::new(&python).args(["-c", "import openai"]).output().is_ok_and(|o| o.status.success());
    if has_package() {
        return Ok(python);
    }
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
    run(Command::new(&python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--retries",
        "1",
        "--timeout",
        "20",
        "openai",
    ]))?;
    Ok(python)
}

#[test]
fn the_openai_package_completes_chats_streams_and_lists() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => {
            eprintln!("skipped: the package openai cannot be installed ({})", reason.trim());
            return;
        }
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let models = ["mini-de-en", "mini-descriptions-blocks"].map(|name| here.join("../../models").join(name));
    let server = Server::of(&models.each_ref().map(|path| path.to_str().unwrap()));
    let mut client = Command::new(python);
    client.arg(here.join("tests/openai_client.py")).arg(format!("http://{}/v1", server.address));
    let output = client.env("NO_PROXY", "*").env("no_proxy", "*").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

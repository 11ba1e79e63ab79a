//! `elf serve` asked by the `openai` package of Python, as its users ask it. Skipped, with a message, where Python or the
//! package is not to be had.

mod python_package;
mod server;
mod tiny_run;

use std::path::Path;
use std::process::Command;

use server::Server;

#[test]
fn the_openai_package_completes_chats_streams_and_lists() {
    let python = match python_package::python_with("openai") {
        Ok(python) => python,
        Err(reason) => {
            eprintln!("skipped: the package openai cannot be installed ({reason})");
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

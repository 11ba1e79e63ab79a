//! The program `elf`. Everything is in the library beside it, so that tests can walk its commands and options.

fn main() -> std::process::ExitCode {
    elf_cli::main()
}

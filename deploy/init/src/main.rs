//! The binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    postern_init::main(&words)
}

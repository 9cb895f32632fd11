//! The binary `postern-proxy`: [`postern_proxy::main`] and nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    postern_proxy::main(&arguments)
}

//! Processes on the processor that they are meant for.

use std::path::Path;
use std::process::Command;

use postern_tests::Process;

/// Where the load generator and the backend run.
pub(crate) const LOAD: usize = 0;
/// Where both proxies of a pair run: it is theirs alone, so requests per second at saturation follow from their costs.
pub(crate) const PROXIES: usize = 1;

/// `program` on one processor, all its threads.
pub(crate) fn on(processor: usize, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.arg("--cpu-list").arg(processor.to_string()).arg(program);
    command
}

/// Starts a program that stays, on one processor. It is killed with its handle.
pub(crate) fn start(
    processor: usize,
    name: &str,
    program: &Path,
    log: &Path,
    shape: impl FnOnce(&mut Command),
) -> Process {
    // taskset replaces itself by the program: the process id stays.
    Process::start(name, Path::new("taskset"), log, |command| {
        command.arg("--cpu-list").arg(processor.to_string()).arg(program);
        shape(command);
    })
}

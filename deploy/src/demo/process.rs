//! One process of the mesh: started with its output in a log file, stopped with the demo.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::demo::failure::{Explain, Failure};

/// Sidecars drain for seconds when they are asked to stop; a demo that ends has nothing worth draining.
const PATIENCE: Duration = Duration::from_millis(700);

/// A running child of the demo. Dropping it kills it, so nothing outlives a panic.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    /// Held open, never written to: every process of the demo ends when it closes, even if the demo is killed.
    _stdin: Option<ChildStdin>,
    log: PathBuf,
}

impl Process {
    /// Runs this very binary with `arguments`, or the words of `within` with them, appending what it prints to `log`.
    pub(crate) fn start(
        name: &str,
        within: &[String],
        arguments: &[&str],
        log: PathBuf,
    ) -> Result<Self, Failure> {
        let out = append(&log)?;
        let err = out.try_clone().explain(format!("cannot write to {}", log.display()))?;
        let mut command = match within.split_first() {
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words);
                command
            }
            None => this_binary()?,
        };
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(err)
            // A group of its own: Ctrl-C in the terminal reaches the demo alone, which then stops its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .explain(format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), _stdin: child.stdin.take(), child, log })
    }

    /// Its name in messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How it ended, if it did.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        // Err would mean that it is not our child: it is.
        self.child.try_wait().ok().flatten()
    }

    /// All that it printed.
    pub(crate) fn printed(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// What it printed last, for a message about it.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        if lines.is_empty() {
            "it printed nothing".to_owned()
        } else {
            format!("it printed:\n      {}", lines.join("\n      "))
        }
    }

    /// The first line in its log that tells of a panic.
    pub(crate) fn panic_line(&self) -> Option<String> {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().find(|line| line.contains("panicked at")).map(str::to_owned)
    }

    /// Asks it to stop.
    pub(crate) fn ask_to_stop(&mut self) {
        if let Some(pid) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            // It is our child and not yet waited for, so the number cannot belong to anybody else.
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
    }

    /// Waits a moment for it to stop, then kills it.
    pub(crate) async fn stop(&mut self) {
        if timeout(PATIENCE, self.child.wait()).await.is_err() {
            let _ = self.kill().await;
        }
    }

    /// Ends it at once, as a crash would (SIGKILL), and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill().await.explain(format!("cannot kill {}", self.name))
    }
}

/// Runs this very binary to its end; an exit code other than 0 is a failure.
pub(crate) async fn run_to_end(arguments: &[&str]) -> Result<(), Failure> {
    let verb = arguments.join(" ");
    let run = this_binary()?.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(Duration::from_secs(10), run)
        .await
        .explain(format!("`postern {verb}` does not end"))?
        .explain(format!("cannot run `postern {verb}`"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("`postern {verb}` failed ({}): {}", output.status, said.trim())))
}

/// Runs a program to its end and gives what it printed; an exit code other than 0 is a failure.
pub(crate) async fn output_of(words: &[String]) -> Result<String, Failure> {
    let told = words.join(" ");
    let (program, rest) = words.split_first().explain("no program is named")?;
    let run = Command::new(program).args(rest).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(Duration::from_secs(10), run)
        .await
        .explain(format!("`{told}` does not end"))?
        .explain(format!("cannot run `{told}`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    crate::demo::failure::ensure!(
        output.status.success(),
        "`{told}` failed ({}): {}",
        output.status,
        said.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs this very binary to its end, whatever its exit code: that, and what it printed.
pub(crate) async fn ask(arguments: &[&str]) -> Result<(Option<i32>, String), Failure> {
    let verb = arguments.join(" ");
    let run = this_binary()?.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let output = timeout(Duration::from_secs(10), run)
        .await
        .explain(format!("`postern {verb}` does not end"))?
        .explain(format!("cannot run `postern {verb}`"))?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

fn this_binary() -> Result<Command, Failure> {
    let path = std::env::current_exe().explain("cannot find this program's own file")?;
    Ok(Command::new(path))
}

fn append(log: &PathBuf) -> Result<File, Failure> {
    OpenOptions::new().create(true).append(true).open(log).explain(format!("cannot write {}", log.display()))
}

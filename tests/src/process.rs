//! A child process with its log, which never outlives its test.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

use crate::wait;

/// A running child. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Mutex<Child>,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with both outputs appended to `log`, and no input unless `shape` pipes one, which then stays open.
    ///
    /// Should the test itself be killed, the kernel kills the child (it does so when the *thread* that started it ends:
    /// start children from the test's own thread).
    pub fn start(name: &str, program: &Path, log: &Path, shape: impl FnOnce(&mut Command)) -> Self {
        let mut command = tied(program);
        command.stdin(Stdio::null());
        shape(&mut command);
        let out = append(log);
        let err = out.try_clone().expect("a descriptor can be duplicated");
        command.stdout(out).stderr(err);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name}: {}: {error}", program.display()));
        Self { name: name.to_owned(), child: Mutex::new(child), log: log.to_owned() }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.lock().id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // A child that has not been waited for keeps its id: this cannot hit a stranger.
        let _ = kill(Pid::from_raw(self.id().cast_signed()), signal);
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().try_wait().expect("a child can be asked for its state")
    }

    /// Waits for its end.
    pub fn wait(&self, within: Duration) -> ExitStatus {
        wait::for_some(&format!("the end of {}", self.name), within, || self.ended())
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&self) {
        let mut child = self.child.lock();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Everything it has written.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(120);
            eprintln!("--- {} ({} lines, the last {}):", self.name, lines.len(), lines.len() - from);
            for line in &lines[from..] {
                eprintln!("  {line}");
            }
        }
    }
}

/// Resident memory of a process, in MiB.
pub fn resident(process: u32) -> u64 {
    status(process, "VmRSS:")
}

fn status(process: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1_024
}

/// The most that was ever resident of a process, in MiB.
pub fn resident_at_most(process: u32) -> u64 {
    status(process, "VmHWM:")
}

/// Open descriptors of a process.
pub fn descriptors(process: u32) -> usize {
    std::fs::read_dir(format!("/proc/{process}/fd")).expect("it runs").count()
}

/// Time that a process has had on a processor, in the kernel too.
pub fn processor_time(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    // The second field is a name, which may hold anything; its parenthesis is the last one.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum();
    // USER_HZ, which is 100 wherever Linux runs.
    Duration::from_millis(ticks * 10)
}

/// `program`, killed by the kernel when its parent dies.
fn tied(program: &Path) -> Command {
    const SETPRIV: &str = "/usr/bin/setpriv";
    if !Path::new(SETPRIV).exists() {
        return Command::new(program);
    }
    let mut command = Command::new(SETPRIV);
    // It replaces itself by the program: the process id stays.
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn append(log: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .unwrap_or_else(|error| panic!("{}: {error}", log.display()))
}

//! Programs that were not written here: how they are found, run, and missed loudly.

use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::{target_directory, wait};

/// What a finished program left.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: String,
}

impl Run {
    /// Its standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Whether all `tools` are here, as `tests/setup.sh` names them (`curl`, `openssl`, `h2load`, `nghttp`, `nghttpd`,
/// `nginx`, `nft`, `ip`, `ping`, `softhsm2-util`, `pkcs11-tool`, `certtool`, `etcd`, `etcdctl`, `faketime`, `promtool`, `node`, `grpc`, `websockets`, `jwt`, `cryptography`, `spiffe`, `pkilint`, `sslyze`, `envoy`, `grpc-js`,
/// `postgres`, `mariadbd`, `mariadb`, `redis-cli`, `msmtpd`, `socat`). If not, the test is skipped, loudly: say so on standard error, count it in
/// `target/skipped.txt`, and let the test return. CI fails on what stands there.
///
/// ```no_run
/// if !postern_tests::foreign::need(&["grpc"]) {
///     return;
/// }
/// ```
#[must_use]
pub fn need(tools: &[&str]) -> bool {
    let missing: Vec<String> = tools
        .iter()
        .filter_map(|tool| match STATUS.iter().find(|(name, _)| name == tool) {
            Some((_, state)) if state == "ok" => None,
            Some((_, why)) => Some(format!("{tool}: {why}")),
            None => Some(format!("{tool}: tests/setup.sh says nothing of it")),
        })
        .collect();
    if !missing.is_empty() {
        skip(&missing.join("; "));
    }
    missing.is_empty()
}

/// Notes that this test does not run, and why.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIPPED {}: {reason}\n", thread.name().unwrap_or("a test"));
    // Not eprintln: the test runner swallows that of tests that pass, and this one will.
    let _ = std::io::stderr().write_all(line.as_bytes());
    let path = target_directory().join("skipped.txt");
    let written = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    assert!(written.is_ok(), "{}: a test that is skipped must be counted: {written:?}", path.display());
}

/// Python with the packages of `tests/requirements.txt`, running one of `tests/peers`.
pub fn python(peer: &str) -> (PathBuf, PathBuf) {
    let interpreter = target_directory().join("foreign/venv/bin/python");
    (interpreter, Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(peer))
}

/// The same with the packages of `tests/requirements-sslyze.txt`.
pub fn sslyze(peer: &str) -> (PathBuf, PathBuf) {
    let (_, script) = python(peer);
    (target_directory().join("foreign/sslyze/bin/python"), script)
}

/// Node.js, running one of `tests/peers` with the packages of `tests/node`, which are in [`node_modules`].
pub fn node(peer: &str) -> (PathBuf, PathBuf) {
    (PathBuf::from("node"), Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(peer))
}

/// Where Node.js finds those packages: the value of `NODE_PATH`.
pub fn node_modules() -> PathBuf {
    target_directory().join("foreign/node/node_modules")
}

/// The library that `faketime` puts under a program with threads.
pub fn libfaketime() -> PathBuf {
    let listed = run(Command::new("dpkg").args(["-L", "libfaketime"]), wait::PATIENCE).text();
    let found = listed.lines().find(|line| line.ends_with("/libfaketimeMT.so.1")).map(PathBuf::from);
    found.unwrap_or_else(|| panic!("the package libfaketime has no libfaketimeMT.so.1: {listed}"))
}

/// Runs a program to its end, which must come in time.
pub fn run(command: &mut Command, within: Duration) -> Run {
    run_with_input(command, b"", within)
}

/// Runs a program that reads `input` and must end in time.
pub fn run_with_input(command: &mut Command, input: &[u8], within: Duration) -> Run {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let (stdout, stderr) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let mut stdin = child.stdin.take();
    let input = input.to_vec();
    let feeding = std::thread::spawn(move || {
        // A program that does not want its input closes the pipe: its business.
        let _ = stdin.as_mut().map(|stdin| stdin.write_all(&input));
    });
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be asked for its state") {
            break status;
        }
        if start.elapsed() > within {
            let _ = child.kill();
            let _ = child.wait();
            let said = stderr.join().unwrap_or_default();
            panic!("{command:?} did not end within {within:?}; it said: {}", String::from_utf8_lossy(&said));
        }
        wait::pause(Duration::from_millis(5));
    };
    let _ = feeding.join();
    Run {
        code: status.code().unwrap_or(-1),
        stdout: stdout.join().unwrap_or_default(),
        stderr: String::from_utf8_lossy(&stderr.join().unwrap_or_default()).into_owned(),
    }
}

fn drain<R: Read + Send + 'static>(from: Option<R>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut from) = from {
            let _ = from.read_to_end(&mut all);
        }
        all
    })
}

/// What `tests/setup.sh` found or installed; run once in each test program.
static STATUS: LazyLock<Vec<(String, String)>> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup.sh");
    let ran = Command::new("sh").arg(&script).arg(target_directory()).stdin(Stdio::null()).output();
    if !matches!(&ran, Ok(output) if output.status.success()) {
        eprintln!("{}: {ran:?}", script.display());
    }
    let status = std::fs::read_to_string(target_directory().join("foreign/status")).unwrap_or_default();
    let line = |line: &str| line.split_once(' ').map(|(name, state)| (name.to_owned(), state.to_owned()));
    status.lines().filter_map(line).collect()
});

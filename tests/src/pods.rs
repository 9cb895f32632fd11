//! Workloads in network namespaces of their own, as pods are: redirected by `postern-init`, run by ordinary users.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::foreign::{self, Run};
use crate::process::Process;
use crate::{namespace, wait};

/// The sidecar's user in a pod.
pub const SIDECAR: u32 = 24_140;
/// An ordinary one.
pub const WORKLOAD: u32 = 1_000;
/// Where the test itself stands on the pods' network, outside of every pod.
pub const OUTSIDE: [&str; 2] = ["10.77.0.1", "fd77::1"];
/// Python for any user: other interpreters may lie where only one may read.
const PYTHON: &str = "/usr/bin/python3";

/// Whether this test runs where it may have pods: then it is root in namespaces of its own, with the tools that it takes. If not,
/// it has been run there by this very call, or skipped loudly, and has only to return.
#[must_use]
pub fn inside(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        foreign::skip("pods have several users: only root can give them to their processes");
        return false;
    }
    if !foreign::need(&["nft", "ip", "ping", "curl"]) {
        return false;
    }
    if !Path::new(PYTHON).exists() {
        foreign::skip("there is no /usr/bin/python3, which every user could run");
        return false;
    }
    let setup = [
        "link add pods type bridge".to_owned(),
        "link set pods up".to_owned(),
        format!("addr add {}/24 dev pods", OUTSIDE[0]),
        format!("addr add {}/64 dev pods nodad", OUTSIDE[1]),
    ];
    let setup: Vec<&str> = setup.iter().map(String::as_str).collect();
    namespace::inside(test, &setup)
}

/// A pod: a namespace on the bridge, with addresses `10.77.0.N` and `fd77::N`.
#[derive(Debug)]
pub struct Pod {
    /// Its name, and its namespace's.
    pub name: String,
    /// Its addresses.
    pub addresses: [IpAddr; 2],
    directory: PathBuf,
}

impl Pod {
    /// Makes pods, numbered from 2 on. Scripts and logs of their processes are in `directory`.
    pub fn several(names: &[&str], directory: &Path) -> Vec<Self> {
        // The mounts are this test's own: nobody else sees these names, and nothing of them stays.
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
        fs::create_dir("/run/netns").expect("the file system is new");
        for (name, script) in
            [("pod.py", include_str!("../peers/pod.py")), ("call.py", include_str!("../peers/call.py"))]
        {
            fs::write(directory.join(name), script).expect("the directory is ours");
        }
        for path in [directory, &directory.join("pod.py"), &directory.join("call.py")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
        names.iter().enumerate().map(|(at, name)| Self::new(name, at + 2, directory)).collect()
    }

    fn new(name: &str, number: usize, directory: &Path) -> Self {
        let (v4, v6) = (format!("10.77.0.{number}"), format!("fd77::{number}"));
        let own = std::process::id().to_string();
        let ends = format!("v-{name}");
        for command in [
            format!("netns add {name}"),
            format!("-n {name} link add eth0 type veth peer name {ends} netns {own}"),
            format!("link set {ends} master pods up"),
            format!("-n {name} link set lo up"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} addr add {v4}/24 dev eth0"),
            format!("-n {name} addr add {v6}/64 dev eth0 nodad"),
            format!("-n {name} route add default via {}", OUTSIDE[0]),
            format!("-n {name} -6 route add default via {}", OUTSIDE[1]),
        ] {
            run("ip", &command.split(' ').collect::<Vec<_>>());
        }
        let addresses = [&v4, &v6].map(|text| text.parse().expect("it is an address"));
        Self { name: name.to_owned(), addresses, directory: directory.to_owned() }
    }

    /// Runs a program here as `uid`, without any privilege, to its end.
    pub fn run(&self, uid: u32, words: &[&str]) -> Run {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "setpriv"]).args(ordinary(uid)).args(words);
        foreign::run(&mut command, Duration::from_secs(40))
    }

    /// Runs a program here as root.
    pub fn privileged(&self, words: &[&str]) -> Run {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(words);
        foreign::run(&mut command, Duration::from_secs(40))
    }

    /// Runs `postern-init` here as nobody, with CAP_NET_ADMIN and nothing else. DNS goes to `10.77.0.1`.
    pub fn init(&self, words: &[&str]) -> Run {
        let program = crate::binaries::postern_init();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "setpriv"]).args(user(65_534, Some("net_admin")));
        command.arg(self.shared(&program)).args(words);
        if matches!(words.first(), Some(&"apply" | &"check" | &"show")) {
            command.args(["--dns-server", OUTSIDE[0]]);
        }
        foreign::run(&mut command, Duration::from_secs(40))
    }

    /// Starts the workload of `tests/peers/pod.py`, with more variables in its environment.
    pub fn start_workload(&self, environment: &[(&str, &str)]) -> Process {
        let log = self.directory.join(format!("{}-workload.log", self.name));
        let process = self.start("workload", WORKLOAD, &log, &[PYTHON, &self.script("pod.py")], |command| {
            command.env("POD", &self.name).envs(environment.iter().copied());
        });
        wait::until("the workload listens", wait::PATIENCE, || process.log().contains("listening"));
        process
    }

    /// Starts a program here as `uid`.
    pub fn start(
        &self,
        name: &str,
        uid: u32,
        log: &Path,
        words: &[&str],
        shape: impl FnOnce(&mut Command),
    ) -> Process {
        Process::start(&format!("{} {name}", self.name), Path::new("ip"), log, |command| {
            command.args(["netns", "exec", &self.name, "setpriv", "--pdeathsig", "KILL"]);
            command.args(ordinary(uid)).args(words);
            shape(command);
        })
    }

    /// `curl` as the workload would: it knows of no proxy. The status (0: none) and the body.
    pub fn curl(&self, words: &[&str]) -> (u16, String) {
        let mut all = vec![
            "curl",
            "-q",
            "-sS",
            "--noproxy",
            "*",
            "--globoff",
            "--max-time",
            "15",
            "-w",
            "\n%{http_code}",
        ];
        all.extend(words);
        let run = self.run(WORKLOAD, &all);
        let text = run.text();
        let (body, status) = text.rsplit_once('\n').unwrap_or(("", "0"));
        (status.parse().unwrap_or(0), format!("{body}{}", run.stderr))
    }

    /// `tests/peers/call.py` as the workload.
    pub fn call(&self, words: &[&str]) -> String {
        let mut all = vec![PYTHON.to_owned(), self.script("call.py")];
        all.extend(words.iter().map(|word| (*word).to_owned()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        self.run(WORKLOAD, &all).text().trim().to_owned()
    }

    /// A page of its sidecar's health listener, asked from outside.
    pub fn page(&self, path: &str) -> Option<(u16, String)> {
        crate::wire::page((self.addresses[0], 24_191), path)
    }

    /// The same, asked from within.
    pub fn page_within(&self, path: &str) -> (u16, String) {
        self.curl(&[&format!("http://127.0.0.1:24191{path}")])
    }

    fn script(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// A copy of a program that any user may run: where it was built may be closed to others.
    pub fn shared(&self, program: &Path) -> PathBuf {
        shared(program, &self.directory)
    }
}

/// A program where every user may run it.
pub(crate) fn shared(program: &Path, directory: &Path) -> PathBuf {
    let copy = directory.join(program.file_name().expect("a program has a name"));
    if !copy.exists() && fs::hard_link(program, &copy).is_err() {
        fs::copy(program, &copy).expect("a program can be copied");
    }
    copy
}

/// Gives a path to the sidecar's user.
pub(crate) fn give(path: &Path, uid: u32) {
    chown(path, Some(uid), Some(uid)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// What makes a process an ordinary user's.
fn ordinary(uid: u32) -> Vec<String> {
    user(uid, None)
}

/// What makes a process a user's who has one capability, or none: words for setpriv.
pub(crate) fn user(uid: u32, capability: Option<&str>) -> Vec<String> {
    let uid = uid.to_string();
    let capabilities = capability.map_or_else(|| "-all".to_owned(), |name| format!("-all,+{name}"));
    let mut words = vec!["--reuid", &uid, "--regid", &uid, "--clear-groups", "--no-new-privs"];
    words.extend([
        "--inh-caps",
        &capabilities,
        "--ambient-caps",
        &capabilities,
        "--bounding-set",
        &capabilities,
        "--",
    ]);
    words.into_iter().map(str::to_owned).collect()
}

/// `tests/peers/call.py` from outside of every pod.
pub fn call_from_outside(directory: &Path, words: &[&str]) -> String {
    let mut command = Command::new(PYTHON);
    command.arg(directory.join("call.py")).args(words);
    foreign::run(&mut command, Duration::from_secs(40)).text().trim().to_owned()
}

fn run(program: &str, words: &[&str]) {
    let ran = foreign::run(Command::new(program).args(words), wait::PATIENCE);
    assert_eq!(ran.code, 0, "{program} {words:?}: {}", ran.stderr);
}

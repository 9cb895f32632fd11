//! A network and mounts of one's own, for what loopback shared with other tests does not allow.

use std::process::Command;
use std::time::Duration;

use crate::foreign;

/// Set for the test that runs inside.
const INSIDE: &str = "POSTERN_TEST_NAMESPACE";

/// Whether this test runs in namespaces of its own, of network and mounts. If not, it has been run there by this very call, and
/// has only to return; where no namespace can be made the test is skipped, loudly. `test` is its own name, `setup` are commands of
/// `ip` that run first; loopback is up.
#[must_use]
pub fn inside(test: &str, setup: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    // Root needs no user namespace, and may not be allowed one.
    let possible = ["-mn", "-Urmn"].into_iter().find(|flags| {
        let tried = Command::new("unshare").args([flags, "ip", "link", "set", "lo", "up"]).output();
        tried.is_ok_and(|tried| tried.status.success())
    });
    let Some(flags) = possible else {
        foreign::skip("no namespaces can be made here: unshare -Urmn with ip (iproute2) must work");
        return false;
    };
    let mut script = String::from("set -e; ip link set lo up; ");
    for command in setup {
        script.push_str(&format!("ip {command}; "));
    }
    script.push_str("exec \"$0\" \"$@\"");
    let own = std::env::current_exe().expect("a test knows its program");
    let mut command = Command::new("unshare");
    command.args([flags, "sh", "-c", &script]).arg(own);
    command.args(["--exact", test, "--include-ignored", "--nocapture"]).env(INSIDE, "1");
    let run = foreign::run(&mut command, Duration::from_secs(300));
    let passed = run.code == 0 && run.text().contains("1 passed");
    assert!(passed, "inside its namespace the test failed:\n{}\n{}", run.text(), run.stderr);
    false
}

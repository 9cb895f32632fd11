//! `curl`, and what it got.

use std::process::Command;

use crate::foreign::{self, Run};

/// What curl got.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status of the last response; 0 if none came.
    pub status: u16,
    /// Its version, as curl writes it: `1.0`, `1.1`, `2`.
    pub version: String,
    /// Its header fields and trailers, names in lower case, in their order.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
    /// curl's exit code (7: no connection, 18: cut short, 28: time, 52: empty reply, 56: reset).
    pub exit: i32,
    /// curl's own words.
    pub stderr: String,
}

impl Answer {
    /// The only value of a field; panics if it stands there twice.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(own, _)| own == name).map(|(_, value)| value.as_str());
        let first = values.next();
        assert!(values.next().is_none(), "{name} stands twice in {:?}", self.headers);
        first
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON, as the recording origin answers.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}, {}", self.text()))
    }
}

/// Runs curl on `way`, with `arguments`.
pub(crate) fn run(way: &[&str], arguments: &[&str]) -> Answer {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let heads = directory.path().join("heads");
    let mut command = Command::new("curl");
    command.args(["-q", "-sS", "--path-as-is", "--globoff", "--max-time", "30", "--dump-header"]).arg(&heads);
    command.args(way).args(arguments);
    let run = foreign::run(&mut command, std::time::Duration::from_secs(60));
    let heads = std::fs::read(&heads).unwrap_or_default();
    answer(run, &String::from_utf8_lossy(&heads))
}

fn answer(run: Run, heads: &str) -> Answer {
    let mut answer = Answer {
        status: 0,
        version: String::new(),
        headers: Vec::new(),
        body: run.stdout,
        exit: run.code,
        stderr: run.stderr,
    };
    for line in heads.lines() {
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix("HTTP/") {
            // Each response begins anew: what a proxy said to CONNECT, and 1xx, come before the last one.
            let mut words = rest.split(' ');
            answer.version = words.next().unwrap_or_default().to_owned();
            answer.status = words.next().and_then(|status| status.parse().ok()).unwrap_or(0);
            answer.headers.clear();
        } else if let Some((name, value)) = line.split_once(':') {
            answer.headers.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    answer
}

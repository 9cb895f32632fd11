//! What is compared: a way from the load generator to the backend, through two proxies or none.

pub(crate) mod envoy;
mod haproxy;
pub(crate) mod postern;
mod stage;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use postern_tests::{Process, wait, wire};

pub(crate) use stage::{BODY, LARGE, LARGE_PATH, PATH, Stage, one_rule};

use crate::options::Options;
use crate::{Failure, install};

/// Who may call, in every contender's policy.
pub(crate) const CALLER: &str = "web";
/// Whom they call.
pub(crate) const CALLEE: &str = "orders";
/// The host name that routes to it.
pub(crate) const HOST: &str = "orders.shop";

/// One way to the backend.
#[derive(Debug)]
pub(crate) struct Contender {
    /// As on the command line.
    pub(crate) name: &'static str,
    /// What exactly it is, versions included.
    pub(crate) what: String,
    /// Where the load goes.
    pub(crate) front: SocketAddr,
    /// The proxies of the pair, outbound first.
    pub(crate) pair: Option<[Process; 2]>,
}

/// Starts all contenders that are wanted, and sees each of them serve and refuse.
pub(crate) fn start(stage: &Stage, options: &Options) -> Result<Vec<Contender>, Failure> {
    let mut all = vec![Contender {
        name: "direct",
        what: format!("load generator and backend alone: {}, {}", stage.nginx_version, stage.wrk_version),
        front: stage.backend,
        pair: None,
    }];
    if options.wants("postern") {
        all.push(postern::start(stage, options)?);
    }
    if options.wants("envoy") {
        all.push(envoy::start(stage, &install::envoy()?, &envoy::one_policy())?);
    }
    if options.wants("haproxy") {
        all.push(haproxy::start(stage, &install::debian("haproxy", "haproxy")?)?);
    }
    for contender in &all {
        contender.check()?;
    }
    Ok(all)
}

impl Contender {
    /// Waits until it serves; then the policy must refuse what it does not allow, and the backend must learn who calls:
    /// a pair that leaves these out would be cheaper and would say nothing.
    fn check(&self) -> Result<(), Failure> {
        let start = Instant::now();
        loop {
            match ask(self.front, "GET", PATH) {
                Some((200, body)) if body == BODY => break,
                _ if start.elapsed() > Duration::from_secs(30) => {
                    return Err(self.fault(&format!("does not serve: {:?}", ask(self.front, "GET", PATH))));
                }
                _ => wait::pause(Duration::from_millis(50)),
            }
        }
        if self.pair.is_none() {
            return Ok(());
        }
        for (method, path) in [("POST", PATH), ("GET", "/internal")] {
            match ask(self.front, method, path) {
                Some((403, _)) => {}
                other => return Err(self.fault(&format!("{method} {path} should be refused: {other:?}"))),
            }
        }
        let caller = crate::certificates::spiffe_id(CALLER);
        match ask(self.front, "GET", stage::WHO) {
            Some((200, identity)) if identity.contains(&caller) => Ok(()),
            other => Err(self.fault(&format!("the backend should hear of {caller}: {other:?}"))),
        }
    }

    /// What is wrong with it, and what it says itself.
    pub(crate) fn fault(&self, what: &str) -> Failure {
        let logs = self.pair.iter().flatten().map(Process::log);
        let logs: Vec<String> =
            logs.map(|log| log.lines().rev().take(10).collect::<Vec<_>>().join("\n")).collect();
        format!("{}: {what}\nthe last of its logs:\n{}", self.name, logs.join("\n---\n"))
    }
}

/// The status and the body of one request.
pub(crate) fn ask(front: SocketAddr, method: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&front, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let status = wire::status(&answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

/// Writes a contender's file.
pub(crate) fn write(stage: &Stage, name: &str, text: &str) -> Result<PathBuf, Failure> {
    let path = stage.directory().join(name);
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

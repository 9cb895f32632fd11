//! Whether what should be redirected is: asked every second, from inside.
//!
//! Reading the rules takes a privilege that the sidecar does not have, so it does what only the rules can turn into
//! something: it connects to ports of loopback at which nobody listens. `postern-init` writes rules that redirect these like
//! any call of the workload's, the sidecar's own user or mark notwithstanding, and others that stop some of them:
//!
//! | port | what becomes of it | so this stands |
//! |---|---|---|
//! | 24142 | it arrives here | redirection of calls (chain `nat_out`) |
//! | 24141 | it arrives here, unless a connection from outside has got past redirection within the last ten seconds | redirection of what comes (chain `nat_in`) |
//! | 24139 | it is refused | what refuses calls that escape (chain `lock_out`) |
//! | 24138 | it is refused | what refuses what comes past redirection (chain `lock_in`) |
//!
//! Nothing that this machine sends to itself passes where redirection of what comes stands, hence the second row's way: the
//! rules themselves note what they should never see.
//!
//! A question carries a number that nobody else knows, and counts as arrived only when its connection comes out at the
//! outbound listener, of which the kernel says that it was made to that port: a workload that listens there itself changes
//! nothing.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::net::{self, TcpStream};
use crate::sidecar::Sidecar;

/// Between two rounds. With [`PATIENCE`] and a second look at what is silent, what is gone is known within four seconds.
const EVERY: Duration = Duration::from_secs(1);
/// For one question. It crosses loopback, and waits its turn among the workload's own connections.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a question carries.
const NONCE: usize = 16;

/// What a question is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub enum Rule {
    /// Calls are redirected.
    RedirectOut,
    /// What comes is redirected.
    RedirectIn,
    /// What escapes redirection outwards is refused.
    LockOut,
    /// What comes past redirection is refused.
    LockIn,
}

impl Rule {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::RedirectOut, Self::RedirectIn, Self::LockOut, Self::LockIn];

    /// Its word in metrics; in `/ready` it follows `capture_`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::RedirectOut => "redirect_out",
            Self::RedirectIn => "redirect_in",
            Self::LockOut => "lock_out",
            Self::LockIn => "lock_in",
        }
    }

    /// Why the sidecar is not ready without it.
    const fn code(self) -> &'static str {
        match self {
            Self::RedirectOut => "capture_redirect_out",
            Self::RedirectIn => "capture_redirect_in",
            Self::LockOut => "capture_lock_out",
            Self::LockIn => "capture_lock_in",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::LockIn => 24_138,
            Self::LockOut => 24_139,
            Self::RedirectIn => 24_141,
            Self::RedirectOut => 24_142,
        }
    }

    /// Whether its question arrives where it stands.
    const fn lets_arrive(self) -> bool {
        matches!(self, Self::RedirectOut | Self::RedirectIn)
    }
}

/// Whether a connection that was redirected here is a question of this module, or somebody's attempt at one.
pub fn is_question(to: SocketAddr) -> bool {
    to.ip().is_loopback() && Rule::ALL.iter().any(|rule| rule.port() == to.port())
}

/// The port that a question goes to, and who waits for it.
type Asked = (u16, oneshot::Sender<()>);

/// The questions that are under way, and what the last ones came to.
#[derive(Debug, Default)]
pub struct Capture {
    asked: Mutex<HashMap<[u8; NONCE], Asked>>,
    missing: [AtomicBool; 4],
    /// A round has been made.
    is_known: AtomicBool,
}

impl Capture {
    /// Takes a connection that was made to one of the ports that only questions go to.
    pub async fn hear(&self, mut stream: TcpStream, to: SocketAddr) {
        let mut nonce = [0; NONCE];
        if let Ok(Ok(_)) = timeout(PATIENCE, stream.read_exact(&mut nonce)).await {
            let mut asked = self.asked.lock();
            if asked.get(&nonce).is_some_and(|(port, _)| *port == to.port())
                && let Some((_, arrived)) = asked.remove(&nonce)
            {
                let _ = arrived.send(());
            }
        }
        // None of these many short connections is to be remembered as one that ended in order.
        net::reset_on_close(&stream);
    }

    /// Why the sidecar is not ready, as stable codes.
    pub fn unready(&self) -> impl Iterator<Item = &'static str> + '_ {
        let unknown = (!self.is_known.load(Ordering::Relaxed)).then_some("capture_unknown");
        let missing =
            Rule::ALL.into_iter().filter(|rule| self.missing[*rule as usize].load(Ordering::Relaxed));
        unknown.into_iter().chain(missing.map(Rule::code))
    }

    /// Asks one question at one address of loopback.
    async fn ask(&self, rule: Rule, at: IpAddr) -> Answer {
        let mut nonce = [0; NONCE];
        if aws_lc_rs::rand::fill(&mut nonce).is_err() {
            return Answer::Silence;
        }
        let (arrived, heard) = oneshot::channel();
        self.asked.lock().insert(nonce, (rule.port(), arrived));
        let question = async {
            let mut stream = net::unmarked((at, rule.port()).into()).await?;
            net::reset_on_close(&stream);
            stream.write_all(&nonce).await?;
            let _ = heard.await;
            io::Result::Ok(())
        };
        let answer = match timeout(PATIENCE, question).await {
            Ok(Ok(())) => Answer::Arrived,
            Ok(Err(_)) => Answer::Refused,
            Err(_) => Answer::Silence,
        };
        self.asked.lock().remove(&nonce);
        answer
    }
}

/// What became of a question.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Answer {
    Arrived,
    Refused,
    Silence,
}

/// Whether the rule is missing. Where a busy machine may be what is silent, it is asked once more before that is said.
fn is_missing(rule: Rule, answer: Answer, was_silent: bool) -> bool {
    match answer {
        Answer::Arrived => !rule.lets_arrive(),
        Answer::Refused => rule.lets_arrive(),
        Answer::Silence => rule.lets_arrive() && was_silent,
    }
}

/// Asks for ever. `families` are the addresses of loopback that the outbound listener stands at.
pub async fn watch(sidecar: Arc<Sidecar>, families: Vec<IpAddr>) {
    let Some(config) = &sidecar.config.capture else { return };
    let rules: Vec<Rule> = Rule::ALL
        .into_iter()
        .filter(|rule| config.lock || matches!(rule, Rule::RedirectOut | Rule::RedirectIn))
        .collect();
    let questions: Vec<(Rule, IpAddr)> =
        rules.iter().flat_map(|rule| families.iter().map(|at| (*rule, *at))).collect();
    let mut silent = vec![false; questions.len()];
    let capture = &sidecar.capture;
    loop {
        let answers = questions.iter().map(|(rule, at)| capture.ask(*rule, *at));
        let answers = futures_util::future::join_all(answers).await;
        let mut missing = [false; 4];
        for (((rule, at), answer), silent) in questions.iter().zip(&answers).zip(&mut silent) {
            let is_gone = is_missing(*rule, *answer, *silent);
            if is_gone && !capture.missing[*rule as usize].load(Ordering::Relaxed) {
                tell(*rule, *at, *answer);
            }
            missing[*rule as usize] |= is_gone;
            *silent = *answer == Answer::Silence;
        }
        for rule in rules.iter().map(|rule| *rule as usize) {
            let was = capture.missing[rule].swap(missing[rule], Ordering::Relaxed);
            sidecar.metrics.capture.missing[rule].set(i64::from(missing[rule]));
            if was && !missing[rule] {
                tracing::info!(rule = Rule::ALL[rule].label(), "the rules of redirection work again");
            }
        }
        capture.is_known.store(true, Ordering::Relaxed);
        tokio::time::sleep(EVERY).await;
    }
}

fn tell(rule: Rule, at: IpAddr, answer: Answer) {
    tracing::error!(
        rule = rule.label(),
        family = if at.is_ipv4() { "IPv4" } else { "IPv6" },
        ?answer,
        "the rules of redirection do not work: the sidecar is not ready (`postern-init check` says what differs, `postern-init apply` writes them anew)"
    );
}

/// The addresses of loopback that calls are redirected to.
pub const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_answers_mean() {
        for rule in Rule::ALL {
            let arrives = rule.lets_arrive();
            for was_silent in [false, true] {
                assert_eq!(is_missing(rule, Answer::Arrived, was_silent), !arrives, "{rule:?}");
                assert_eq!(is_missing(rule, Answer::Refused, was_silent), arrives, "{rule:?}");
            }
            assert!(!is_missing(rule, Answer::Silence, false), "{rule:?}: a busy machine");
            assert_eq!(is_missing(rule, Answer::Silence, true), arrives, "{rule:?}");
            let question = |ip: [u8; 4]| is_question((ip, rule.port()).into());
            assert!(question([127, 0, 0, 1]) && question([127, 9, 9, 9]) && !question([10, 0, 0, 1]));
        }
        assert!(!is_question(([127, 0, 0, 1], 24_140).into()));
    }

    #[tokio::test]
    async fn only_the_number_that_was_asked_counts_and_at_its_own_port() {
        let capture = Capture::default();
        assert_eq!(capture.unready().collect::<Vec<_>>(), ["capture_unknown"]);
        let (arrived, mut heard) = oneshot::channel();
        capture.asked.lock().insert([7; NONCE], (24_142, arrived));
        for (nonce, port, counts) in
            [([8; NONCE], 24_142, false), ([7; NONCE], 24_141, false), ([7; NONCE], 24_142, true)]
        {
            let listener = net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            client.write_all(&nonce).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            capture.hear(stream, ([127, 0, 0, 1], port).into()).await;
            assert_eq!(heard.try_recv().is_ok(), counts, "{nonce:?} at {port}");
        }
        assert!(capture.asked.lock().is_empty());
    }
}

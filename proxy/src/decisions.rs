//! Verdicts by id: what was decided lately, about whom, and by which rule.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use postern_policy::norm::CanonMethod;
use postern_policy::{Effect, Generation, Verdict};
use postern_svid::SpiffeId;

use crate::connections::{Direction, Facts, Operation, Peer};
use crate::error::Reason;

/// Denials and allowances kept, each: a flood of one must not push out the other.
const KEPT: usize = 1_024;
/// Longest path kept, in bytes.
const MAX_PATH: usize = 256;
/// Stands at the end of a path that was longer.
const CUT: &str = "…";

/// Names one verdict: `<generation>-<sidecar instance>-<counter>`, the last two in hexadecimal. It tells a caller
/// nothing, and an operator where to look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DecisionId {
    /// The policy generation that answered; 0 if none was in force.
    pub generation: u64,
    instance: u32,
    counter: u64,
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:06x}-{:x}", self.generation, self.instance, self.counter)
    }
}

impl DecisionId {
    /// Parses what `Display` writes.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let (generation, instance, counter) = (parts.next()?, parts.next()?, parts.next()?);
        let id = Self {
            generation: generation.parse().ok()?,
            instance: u32::from_str_radix(instance, 16).ok()?,
            counter: u64::from_str_radix(counter, 16).ok()?,
        };
        (parts.next().is_none() && id.to_string() == text).then_some(id)
    }

    /// A number that is the same for this id wherever it is worked out, and evenly spread: for sampling.
    pub fn spread(self) -> u64 {
        // SplitMix64's finaliser.
        let mut x = (u64::from(self.instance) << 40) ^ self.counter;
        x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }
}

/// What became of a decision that somebody names.
#[derive(Clone, Debug)]
pub enum Found {
    /// It is remembered.
    Kept(Box<Decision>),
    /// It was made here, and is remembered no more.
    Forgotten,
    /// It is still to be made.
    NotYet,
    /// It was made by another sidecar, or in another run of this one.
    OtherRun,
    /// Nothing was ever called so.
    NotAnId,
}

/// Why a request was refused without asking any rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Unasked {
    /// Why.
    pub reason: Reason,
    /// What is wrong with its token, in words of our own: nothing of the token is kept.
    pub token: Option<&'static str>,
}

impl From<Reason> for Unasked {
    fn from(reason: Reason) -> Self {
        Self { reason, token: None }
    }
}

/// One verdict as it is remembered.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Its id.
    pub id: DecisionId,
    /// When.
    pub at: SystemTime,
    /// About whom and what.
    pub subject: Subject,
    /// The answer; `None` if no rule was asked.
    pub verdict: Option<Verdict>,
    /// Why none was, if none was.
    pub without: Option<Unasked>,
    /// The rule's full name: for denials, and for allowances of generations that are not kept any more. Other allowances
    /// resolve theirs when they are looked at.
    pub rule: Option<String>,
    /// The rate limit that refused what the policy allows.
    pub limit: Option<String>,
}

impl Decision {
    /// Whether it was allowed.
    pub fn is_allowed(&self) -> bool {
        self.limit.is_none() && self.verdict.is_some_and(|verdict| verdict.is_allowed())
    }

    /// Why, in a word.
    pub fn reason(&self) -> &'static str {
        match self.verdict {
            _ if self.limit.is_some() => Reason::RateLimited.label(),
            None => self.without.map_or(Reason::NoPolicy, |without| without.reason).label(),
            Some(Verdict { effect: Effect::Allow, rule: None, .. }) => "default",
            Some(Verdict { effect: Effect::Allow, .. }) => "rule",
            Some(Verdict { effect: Effect::Deny(reason), .. }) => reason.label(),
        }
    }
}

/// Whom and what a decision was about: little enough to be kept for good. Never the stream itself, whose path may be
/// many kilobytes, in several readings, and whose query may hold a secret.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Which way the connection runs.
    pub direction: Direction,
    /// The proven id.
    pub peer: Option<SpiffeId>,
    /// Where the peer connects from.
    pub address: SocketAddr,
    /// The port asked for.
    pub port: u16,
    /// Outbound: the service.
    pub destination: Option<Box<str>>,
    /// Outbound: the host by which it was asked for.
    pub host: Option<Box<str>>,
    /// A tunnel has none.
    method: Option<CanonMethod>,
    /// Without the query.
    path: Box<str>,
    /// The stream's own: it is answered after it was judged.
    status: Arc<AtomicU16>,
}

impl Subject {
    /// What is kept of a stream.
    pub fn new(direction: Direction, peer: &Peer, facts: &Facts, status: Arc<AtomicU16>) -> Self {
        let method = match &facts.operation {
            Operation::Http { method, .. } => Some(method.clone()),
            Operation::Tcp | Operation::Tls { .. } => None,
        };
        let (_, path) = facts.method_and_path();
        Self {
            direction,
            peer: peer.identity.clone(),
            address: peer.address,
            port: facts.port,
            destination: facts.destination.as_deref().map(Box::from),
            host: facts.asked.as_ref().map(|asked| asked.host.name().into()),
            method,
            path: shortened(path),
            status,
        }
    }

    /// Method and path for people; a tunnel has neither.
    pub fn method_and_path(&self) -> (&str, &str) {
        (self.method.as_ref().map_or("-", CanonMethod::as_str), &self.path)
    }

    /// The method and, if it was not cut, the path; `None` for a tunnel.
    pub fn request(&self) -> Option<(&CanonMethod, Option<&str>)> {
        let path = Some(&*self.path).filter(|path| !path.ends_with(CUT));
        self.method.as_ref().map(|method| (method, path))
    }

    /// The status answered so far; 0 for none yet.
    pub fn status(&self) -> u16 {
        self.status.load(Ordering::Relaxed)
    }
}

fn shortened(path: &str) -> Box<str> {
    if path.len() <= MAX_PATH {
        return path.into();
    }
    let kept = &path[..path.floor_char_boundary(MAX_PATH - CUT.len())];
    format!("{kept}{CUT}").into()
}

/// The last decisions.
#[derive(Debug)]
pub struct DecisionLog {
    instance: u32,
    next: AtomicU64,
    denied: Mutex<VecDeque<Decision>>,
    allowed: Mutex<VecDeque<Decision>>,
}

impl DecisionLog {
    /// An empty log; `instance` tells this run of the sidecar from the one before.
    pub fn new(instance: u32) -> Self {
        Self {
            instance: instance & 0x00ff_ffff,
            next: AtomicU64::new(1),
            denied: Mutex::new(VecDeque::with_capacity(KEPT)),
            allowed: Mutex::new(VecDeque::with_capacity(KEPT)),
        }
    }

    /// The next id.
    pub fn id(&self, generation: u64) -> DecisionId {
        DecisionId { generation, instance: self.instance, counter: self.next.fetch_add(1, Ordering::Relaxed) }
    }

    /// Remembers a decision, forgetting the oldest of its kind.
    pub fn record(&self, decision: Decision) {
        let mut kept = if decision.is_allowed() { self.allowed.lock() } else { self.denied.lock() };
        let forgotten = if kept.len() == KEPT { kept.pop_front() } else { None };
        kept.push_back(decision);
        drop(kept);
        drop(forgotten);
    }

    /// Notes that a rate limit refused what had been allowed a moment ago.
    pub fn limited(&self, id: DecisionId, limit: String) {
        let mut allowed = self.allowed.lock();
        // Among the latest: only what other threads decided in between stands after it.
        let at = allowed.iter().rposition(|decision| decision.id == id);
        let decision = at.and_then(|at| allowed.remove(at));
        drop(allowed);
        if let Some(decision) = decision {
            self.record(Decision { limit: Some(limit), ..decision });
        }
    }

    /// Writes the rules' names to the allowances of a generation that is about to be forgotten, and their names with it.
    pub fn name_rules(&self, forgotten: &Generation) {
        for decision in self.allowed.lock().iter_mut() {
            if decision.id.generation == forgotten.number() && decision.rule.is_none() {
                let rule = decision.verdict.and_then(|verdict| verdict.rule);
                decision.rule = rule.map(|rule| forgotten.rule(rule).to_string());
            }
        }
    }

    /// Looks for a decision by its id.
    pub fn find(&self, id: &str) -> Found {
        let Some(id) = DecisionId::parse(id) else { return Found::NotAnId };
        if id.instance != self.instance {
            return Found::OtherRun;
        }
        if id.counter == 0 || id.counter >= self.next.load(Ordering::Relaxed) {
            return Found::NotYet;
        }
        for kept in [&self.denied, &self.allowed] {
            if let Some(found) = kept.lock().iter().find(|decision| decision.id == id) {
                return Found::Kept(Box::new(found.clone()));
            }
        }
        Found::Forgotten
    }

    /// What is remembered, newest first.
    pub fn recent(&self) -> Vec<Decision> {
        let mut all: Vec<Decision> = self.denied.lock().iter().cloned().collect();
        all.extend(self.allowed.lock().iter().cloned());
        all.sort_by_key(|decision| std::cmp::Reverse(decision.id.counter));
        all
    }
}

#[cfg(test)]
mod tests {
    use postern_policy::norm::{CanonHost, CanonPath};
    use postern_policy::{HeaderFields, TokenSet};

    use super::*;

    fn subject(target: &str) -> Subject {
        let method = CanonMethod::get();
        let path = CanonPath::parse_for(&method, target, &Default::default()).unwrap();
        let facts = Facts {
            port: 80,
            operation: Operation::Http {
                method,
                path,
                host: CanonHost::parse("orders.shop").unwrap(),
                headers: HeaderFields::new(),
                upgrade: None,
                tokens: TokenSet::absent(),
            },
            destination: None,
            asked: None,
        };
        let address = ([127, 0, 0, 1], 1).into();
        let peer = Peer { identity: None, address, local: None, serial: None, not_after: None, proof: None };
        Subject::new(Direction::Inbound, &peer, &facts, Arc::default())
    }

    #[test]
    fn of_a_long_path_little_is_kept_and_of_a_query_nothing() {
        let long = subject(&format!("/{}?token=secret", "a".repeat(8_000)));
        let (method, path) = long.method_and_path();
        assert_eq!((method, path.len()), ("GET", MAX_PATH));
        assert!(path.starts_with("/aaa") && path.ends_with(CUT), "{path}");
        assert!(!format!("{long:?}").contains("secret"), "{long:?}");
        assert_eq!(subject("/short?token=secret").method_and_path().1, "/short");
    }

    #[test]
    fn a_decision_is_found_by_its_id_or_it_is_said_why_not() {
        let log = DecisionLog::new(0xabc);
        let first = log.id(7);
        let decision = |id| Decision {
            id,
            at: SystemTime::UNIX_EPOCH,
            subject: subject("/"),
            verdict: None,
            without: Some(Reason::NoPolicy.into()),
            rule: None,
            limit: None,
        };
        log.record(decision(first));
        assert!(matches!(log.find(&first.to_string()), Found::Kept(found) if found.id == first));
        assert!(matches!(log.find("7-000abc-2"), Found::NotYet));
        assert!(matches!(log.find("7-000abd-1"), Found::OtherRun));
        assert!(matches!(log.find("8-000abc-1"), Found::Forgotten), "of another generation than it says");
        for bad in [
            "",
            "7",
            "7-000abc",
            "7-000abc-1-1",
            "7-000abc-01",
            "7-abc-1",
            "x-000abc-1",
            "-1-000abc-1",
            "+7-000abc-1",
        ] {
            assert!(matches!(log.find(bad), Found::NotAnId), "{bad}");
        }
        for _ in 0..KEPT {
            log.record(decision(log.id(7)));
        }
        assert!(matches!(log.find(&first.to_string()), Found::Forgotten));
    }

    #[test]
    fn ids_are_spread_evenly_for_sampling() {
        let log = DecisionLog::new(1);
        let tenth = (0..10_000).filter(|_| log.id(1).spread() < u64::MAX / 10).count();
        assert!((900..1_100).contains(&tenth), "{tenth} of 10000");
    }

    #[test]
    fn a_path_is_not_cut_within_a_character() {
        for lead in ["/", "/a", "/ab", "/abc"] {
            let path = shortened(&format!("{lead}{}", "é".repeat(300)));
            assert!(path.len() <= MAX_PATH && path.ends_with(CUT), "{path}");
        }
    }
}

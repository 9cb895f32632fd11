//! A counterexample as a person can check it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use jiff::Timestamp;
use postern_svid::SpiffeId;

use super::{Asked, What};
use crate::engine::Engine;
use crate::eval_ref::{self, Truth};
use crate::fields::HeaderFields;
use crate::rule::{HeaderMatch, HeaderTest, ListOf, Rule, ValuePattern};
use crate::verdict::{Action, Effect, Operation, RuleId, Source};

/// A combination that breaks the claim, if what is not known is as bad as it can be.
pub(super) struct Found<'p> {
    pub(super) source: Source<'p>,
    pub(super) asked: &'p Asked<'p>,
    /// The rule that decided.
    pub(super) blamed: Option<usize>,
}

/// A request that breaks a claim, or would with header fields or at a time that were not found.
#[derive(Clone, Debug)]
pub(crate) struct Witness {
    pub(crate) identity: Option<SpiffeId>,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) host: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) upgrade: Option<String>,
    /// `Some(None)`: a handshake without one.
    pub(crate) sni: Option<Option<String>>,
    pub(crate) at: Option<Timestamp>,
    /// Method and path; opaque bytes without.
    pub(crate) request: Option<(String, String)>,
    /// The rule that decided. `None`: none did.
    pub(crate) rule: Option<RuleId>,
}

/// Looks for header fields and a time with which the real rules answer so; the error is the witness in doubt.
pub(super) fn confirm(real: &Engine, scope: &Rule, found: &Found<'_>) -> Result<Witness, Box<Witness>> {
    let mut doubtful = witness(found);
    doubtful.rule = found.blamed.and_then(|at| u32::try_from(at).ok()).map(RuleId);
    let all_fields = fields(real, found);
    let times = if real.depends_on_time() { times(&real.rules) } else { vec![None] };
    let (source, asked) = (found.source, found.asked);
    let connection = real.connection(source);
    for at in times {
        if let Some(at) = at {
            let Ok(seconds) = u64::try_from(at.as_second()) else { continue };
            let _ = real.tell_time(UNIX_EPOCH + Duration::from_secs(seconds));
        }
        for headers in &all_fields {
            let mut known = HeaderFields::new();
            if headers.iter().any(|(name, value)| known.push(name, value).is_err()) {
                continue;
            }
            let operation = asked.operation(false, Some(&known));
            if !means(scope, asked.port, operation) {
                continue;
            }
            let verdict = real.decide(&connection, asked.port, operation);
            if verdict.is_allowed() == (scope.action == Action::Deny) {
                let found = Witness { headers: headers.clone(), at, rule: verdict.rule, ..doubtful };
                return Ok(shortened(real, scope, source, asked, found));
            }
        }
    }
    Err(Box::new(doubtful))
}

/// What is allowed although it is not known is allowed whatever it is: it need not be said.
fn shortened(real: &Engine, scope: &Rule, source: Source<'_>, asked: &Asked<'_>, found: Witness) -> Witness {
    if scope.action != Action::Deny {
        return found;
    }
    let allowed = |headers: Option<&HeaderFields>, at: Option<Timestamp>| {
        let (operation, at) = (asked.operation(false, headers), at.map(Timestamp::as_second));
        let answer = eval_ref::decide(&real.rules, &real.domains, source, asked.port, operation, at);
        answer.effect == Effect::Allow && answer.rule == found.rule
    };
    let mut known = HeaderFields::new();
    let is_known = found.headers.iter().all(|(name, value)| known.push(name, value).is_ok());
    let at = found.at.filter(|_| !(is_known && allowed(Some(&known), None)));
    let headers = if allowed(None, at) { Vec::new() } else { found.headers.clone() };
    Witness { at, headers, ..found }
}

/// Whether the claim is about this request, in some reading (`never`) or in all (`always`).
fn means(scope: &Rule, port: u16, operation: Operation<'_>) -> bool {
    let Some(targets) = &scope.to else { return true };
    let mut views = operation.views().into_iter();
    let in_view = |view: Option<&str>| {
        targets
            .iter()
            .any(|target| eval_ref::target(target, scope.action, port, operation, view) == Truth::True)
    };
    if scope.action.is_wide() { views.any(in_view) } else { views.all(in_view) }
}

fn witness(found: &Found<'_>) -> Witness {
    let mut out = Witness {
        identity: found.source.identity.cloned(),
        address: found.source.address,
        port: found.asked.port,
        host: None,
        headers: Vec::new(),
        upgrade: None,
        sni: None,
        at: None,
        request: None,
        rule: None,
    };
    match found.asked.what {
        What::Http { method, path, host, upgrade } => {
            out.request = Some((method.to_string(), path.real.path().to_owned()));
            out.host = host.map(ToString::to_string);
            out.upgrade = upgrade.map(|upgrade| upgrade.as_str().to_owned());
        }
        What::Opaque(sni) => out.sni = sni.map(|sni| sni.map(ToString::to_string)),
    }
    out
}

/// Header fields worth a try: none, and for each alternative of the rule that decided those that it asks for.
fn fields(real: &Engine, found: &Found<'_>) -> Vec<Vec<(String, String)>> {
    // Another field makes it known, wherever it is asked again, that these are all there are.
    let asked =
        real.rules.iter().flat_map(|rule| rule.to.iter().flatten()).any(|target| !target.headers.is_empty());
    let plain = if asked { vec![("accept".to_owned(), "*/*".to_owned())] } else { Vec::new() };
    let mut out = vec![plain.clone()];
    let blamed = found.blamed.and_then(|at| real.rules.get(at)).and_then(|rule| rule.to.as_ref());
    for target in blamed.into_iter().flatten().filter(|target| !target.headers.is_empty()) {
        out.push(plain.iter().cloned().chain(target.headers.iter().filter_map(satisfied)).collect());
    }
    out
}

/// A line that makes the field what is asked for; none if it must be absent.
fn satisfied(field: &HeaderMatch) -> Option<(String, String)> {
    let text = match &field.test {
        HeaderTest::Absent => return None,
        HeaderTest::Present => "x".to_owned(),
        HeaderTest::Is(patterns, ListOf::One | ListOf::Any | ListOf::All) => match patterns.first()? {
            ValuePattern::Exact(text) | ValuePattern::Prefix(text) => text.to_string(),
        },
        HeaderTest::Not(_) => "something-else".to_owned(),
    };
    Some((field.name.to_string(), text))
}

/// Times worth a try: each half hour of a week in winter, one in summer, and the weeks about every date that rules name.
fn times(rules: &[Arc<Rule>]) -> Vec<Option<Timestamp>> {
    const WEEK: i64 = 7 * 86_400;
    let mut starts: Vec<i64> = ["2026-01-05T00:00:00Z", "2026-07-06T00:00:00Z"]
        .iter()
        .filter_map(|text| text.parse::<Timestamp>().ok())
        .map(Timestamp::as_second)
        .collect();
    for window in rules.iter().filter_map(|rule| rule.window.as_ref()).take(64) {
        starts.extend(window.not_before.map(Timestamp::as_second));
        starts.extend(window.not_after.iter().flat_map(|end| [end.as_second() - WEEK, end.as_second()]));
    }
    starts.sort_unstable();
    starts.dedup();
    let halves = |start: i64| (0..WEEK / 1_800).map(move |n| start + n * 1_800);
    starts.into_iter().flat_map(halves).filter_map(|at| Timestamp::from_second(at).ok()).map(Some).collect()
}

impl fmt::Display for Witness {
    /// What `postern policy explain` takes behind `--to`: the port alone is left to whoever knows the workload's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("--workload-port --from ")?;
        match &self.identity {
            Some(id) => write!(f, "{id}")?,
            None => f.write_str("unauthenticated")?,
        }
        if self.address != IpAddr::V4(Ipv4Addr::LOCALHOST) {
            write!(f, " --address {}", self.address)?;
        }
        let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
        if let Some(host) = &self.host {
            write!(f, " --host {}", quoted(host))?;
        }
        for (name, value) in &self.headers {
            write!(f, " --header {}", quoted(&format!("{name}: {value}")))?;
        }
        if let Some(upgrade) = &self.upgrade {
            write!(f, " --upgrade {upgrade}")?;
        }
        if let Some(sni) = &self.sni {
            write!(f, " --sni {}", quoted(sni.as_deref().unwrap_or_default()))?;
        }
        if let Some(at) = &self.at {
            write!(f, " --at {at}")?;
        }
        match &self.request {
            Some((method, path)) => write!(f, " {} {}", quoted(method), quoted(path)),
            None => f.write_str(" tcp"),
        }
    }
}

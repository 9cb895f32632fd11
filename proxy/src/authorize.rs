//! Registers a stream, then asks the policy about it: both by one snapshot.

use std::sync::Arc;

use postern_policy::{Effect, Generation, Verdict};

use crate::connections::{Connection, Entry, Facts, Stream};
use crate::decision_log::Note;
use crate::decisions::{Decision, DecisionId, Unasked};
use crate::error::{Error, Reason, Side};
use crate::observe::log;
use crate::observe::metrics::Dropped;
use crate::sidecar::Sidecar;
use crate::snapshot::Snapshot;

/// The answer about a stream.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Judgement {
    /// The id under which it can be looked up.
    pub id: DecisionId,
    /// Why not, if not.
    pub refused: Option<Reason>,
}

/// How often a stream is made out by a newer policy. Each time takes microseconds, publishing a policy milliseconds.
const TRIES: usize = 8;

/// Registers the stream that `make` makes out by the request's snapshot. A policy that was published meanwhile did not
/// find it in the registry; then the newer snapshot takes the older one's place and the stream is made out anew, so that
/// what it is and what it may are told by one policy, and that is the one in force once it can be found.
pub fn register<T>(
    sidecar: &Arc<Sidecar>,
    connection: &Arc<Connection>,
    snapshot: &mut Arc<Snapshot>,
    mut make: impl FnMut(&Snapshot) -> Result<(Facts, T), Error>,
) -> Result<(Box<Stream>, T), Error> {
    for _ in 0..TRIES {
        let (facts, made) = make(snapshot)?;
        let stream = Box::new(Stream::open(sidecar, connection, facts));
        let now = sidecar.snapshots.load();
        if snapshot.has_policy_of(&now) {
            return Ok((stream, made));
        }
        stream.withdraw();
        *snapshot = Arc::clone(&now);
    }
    Err(Error::unsent(Side::Us, Reason::Overloaded, "the policy changes faster than a request is read"))
}

/// Judges a registered stream by the snapshot that it was registered under: a change that comes later finds it.
pub fn stream(sidecar: &Sidecar, stream: &Stream, snapshot: &Snapshot) -> Judgement {
    let entry = stream.entry();
    let Some(generation) = &snapshot.policy else {
        return unasked(sidecar, entry, snapshot.without_policy().into(), None);
    };
    let verdict = entry.connection.judge(generation, &entry.facts, sidecar.clock.wall());
    snapshot.rule_counts.count(&verdict);
    let id = sidecar.decisions.id(generation.number());
    let allowed = verdict.is_allowed();
    let rule = if allowed { None } else { verdict.rule.map(|rule| generation.rule(rule).to_string()) };
    remark(entry, id, &verdict, generation);
    let breaks_glass = |rule| generation.breaks_glass(rule);
    if let Some(rule) = verdict.rule.filter(|rule| allowed && breaks_glass(*rule)) {
        remark_glass(entry, id, &generation.rule(rule).to_string());
    }
    write(sidecar, entry, id, Some(verdict), None, Some(generation));
    remember(sidecar, entry, id, Answer { verdict: Some(verdict), rule, without: None });
    Judgement { id, refused: (!allowed).then_some(Reason::PolicyDenied) }
}

/// Refuses a registered stream that carries a token that is none: no rule is asked about it. `why` says what is wrong with
/// the token and nothing that it holds.
pub fn refuse_token(sidecar: &Sidecar, stream: &Stream, snapshot: &Snapshot, why: &'static str) -> Judgement {
    let without = Unasked { reason: Reason::TokenInvalid, token: Some(why) };
    unasked(sidecar, stream.entry(), without, snapshot.policy.as_ref())
}

fn unasked(
    sidecar: &Sidecar,
    entry: &Arc<Entry>,
    without: Unasked,
    generation: Option<&Arc<Generation>>,
) -> Judgement {
    let id = sidecar.decisions.id(generation.map_or(0, |generation| generation.number()));
    write(sidecar, entry, id, None, Some(without), generation);
    remember(sidecar, entry, id, Answer { verdict: None, rule: None, without: Some(without) });
    Judgement { id, refused: Some(without.reason) }
}

/// Judges a registered call of the own workload, as [`stream`] does. `None`: no rule is asked about it.
pub fn call(sidecar: &Sidecar, stream: &Stream, snapshot: &Snapshot) -> Option<Judgement> {
    let entry = stream.entry();
    let generation = snapshot.policy.as_ref()?;
    let verdict = entry.judge_egress(generation, &sidecar.config)?;
    snapshot.rule_counts.count(&verdict);
    let id = sidecar.decisions.id(generation.number());
    let allowed = verdict.is_allowed();
    let rule = if allowed { None } else { verdict.rule.map(|rule| generation.rule(rule).to_string()) };
    remark(entry, id, &verdict, generation);
    write(sidecar, entry, id, Some(verdict), None, Some(generation));
    remember(sidecar, entry, id, Answer { verdict: Some(verdict), rule, without: None });
    Some(Judgement { id, refused: (!allowed).then_some(Reason::EgressDenied) })
}

/// Says what shadow rules would turn round, and what an Audit marks.
fn remark(entry: &Entry, id: DecisionId, verdict: &Verdict, generation: &Generation) {
    let peer = entry.connection.peer.identity.as_ref().map_or("-", |id| id.as_str());
    let (method, path) = entry.facts.method_and_path();
    let (path, port) = (log::path(path), entry.facts.port);
    let (direction, destination) = way(entry);
    let would = verdict.shadow.filter(|would| (would.effect == Effect::Allow) != verdict.is_allowed());
    if let Some(would) = would {
        let effect = if would.effect == Effect::Allow { "allow" } else { "deny" };
        let rule = would.rule.map_or_else(|| "-".to_owned(), |rule| generation.rule(rule).to_string());
        tracing::info!(target: "postern::decision", decision = %id, would = effect, %rule, direction, peer, destination, port, method, %path, "in the shadow");
    }
    if let Some(rule) = verdict.audit {
        let effect = if verdict.is_allowed() { "allow" } else { "deny" };
        let rule = generation.rule(rule);
        tracing::info!(target: "postern::decision", decision = %id, effect, %rule, direction, peer, destination, port, method, %path, "audited");
    }
}

/// Which way a stream runs, and where to if it is outwards.
fn way(entry: &Entry) -> (&'static str, &str) {
    let Entry { connection, facts, .. } = entry;
    (connection.direction.label(), facts.destination.as_deref().unwrap_or("-"))
}

/// Says whom broken glass lets in.
fn remark_glass(entry: &Entry, id: DecisionId, rule: &str) {
    if !log::GLASS.admits("allowed") {
        return;
    }
    let peer = entry.connection.peer.identity.as_ref().map_or("-", |id| id.as_str());
    let (method, path) = entry.facts.method_and_path();
    let (path, port) = (log::path(path), entry.facts.port);
    tracing::warn!(target: "postern::decision", decision = %id, effect = "allow", rule, peer, port, method, %path, "let in through broken glass");
}

/// Has the decision written to the log of decisions, if it is one of those that are.
fn write(
    sidecar: &Sidecar,
    entry: &Arc<Entry>,
    id: DecisionId,
    verdict: Option<Verdict>,
    without: Option<Unasked>,
    generation: Option<&Arc<Generation>>,
) {
    let allowed = verdict.is_some_and(|verdict| verdict.is_allowed());
    let Some(log) = sidecar.decision_log.as_ref().filter(|log| log.samples(id, allowed)) else { return };
    let (at, entry, generation) = (sidecar.clock.wall(), Arc::clone(entry), generation.map(Arc::clone));
    if allowed {
        entry.is_logged_as(id);
    }
    if !log.offer(Note::Decision { id, at, entry, verdict, without, generation }) {
        sidecar.metrics.decision_dropped[Dropped::Queue as usize].inc();
    }
}

/// What a stream was answered.
struct Answer {
    verdict: Option<Verdict>,
    /// For denials.
    rule: Option<String>,
    /// Why there is no verdict.
    without: Option<Unasked>,
}

fn remember(sidecar: &Sidecar, entry: &Entry, id: DecisionId, answer: Answer) {
    let Answer { verdict, rule, without } = answer;
    let (at, subject) = (sidecar.clock.wall(), entry.subject());
    let decision = Decision { id, at, subject, verdict, rule, without, limit: None };
    let allowed = decision.is_allowed();
    sidecar.metrics.decision(verdict);
    if !allowed && log::DENIALS.admits("denied") {
        let (method, path) = entry.facts.method_and_path();
        let (direction, destination) = way(entry);
        tracing::info!(
            target: "postern::decision",
            decision = %decision.id,
            effect = "deny",
            reason = decision.reason(),
            token_error = decision.without.and_then(|without| without.token),
            rule = decision.rule.as_deref().unwrap_or("-"),
            direction,
            destination,
            peer = entry.connection.peer.identity.as_ref().map_or("-", |id| id.as_str()),
            port = entry.facts.port,
            method,
            path = &*log::path(path),
            "denied"
        );
    }
    sidecar.decisions.record(decision);
}

#[cfg(test)]
mod tests;

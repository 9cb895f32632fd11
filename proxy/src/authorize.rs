//! Asks the policy about one registered stream.

use postern_policy::Verdict;

use crate::connections::{Entry, Stream};
use crate::decisions::{Decision, DecisionId};
use crate::error::Reason;
use crate::sidecar::Sidecar;

/// The answer about a stream.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Judgement {
    /// The id under which it can be looked up.
    pub id: DecisionId,
    /// Why not, if not.
    pub refused: Option<Reason>,
}

/// Judges a stream by the policy in force **now**: it has been registered, so a change that comes later finds it.
pub fn stream(sidecar: &Sidecar, stream: &Stream) -> Judgement {
    let snapshot = sidecar.snapshots.load();
    let entry = stream.entry();
    let Some(generation) = &snapshot.policy else {
        let id = sidecar.decisions.id(0);
        remember(sidecar, entry, id, None, None);
        return Judgement { id, refused: Some(Reason::NoPolicy) };
    };
    let verdict = entry.connection.judge(generation, &entry.facts);
    let id = sidecar.decisions.id(generation.number());
    let allowed = verdict.is_allowed();
    let rule = if allowed { None } else { verdict.rule.map(|rule| generation.rule(rule).to_string()) };
    remember(sidecar, entry, id, Some(verdict), rule);
    Judgement { id, refused: (!allowed).then_some(Reason::PolicyDenied) }
}

fn remember(
    sidecar: &Sidecar,
    entry: &Entry,
    id: DecisionId,
    verdict: Option<Verdict>,
    rule: Option<String>,
) {
    let decision = Decision { id, at: sidecar.clock.wall(), subject: entry.subject(), verdict, rule };
    let allowed = decision.is_allowed();
    sidecar.metrics.decision(allowed);
    if !allowed {
        let (method, path) = entry.facts.method_and_path();
        tracing::info!(
            target: "postern::decision",
            decision = %decision.id,
            effect = "deny",
            rule = decision.rule.as_deref().unwrap_or("-"),
            peer = entry.connection.peer.identity.as_ref().map_or("-", |id| id.as_str()),
            port = entry.facts.port,
            method,
            path,
            "denied"
        );
    }
    sidecar.decisions.record(decision);
}

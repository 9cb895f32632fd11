//! What a line says.

use std::time::SystemTime;

use aws_lc_rs::hmac;
use postern_policy::{Effect, Generation, HeaderLines, RuleId, Upgrade, Verdict};
use postern_svid::SpiffeId;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Note;
use crate::config::{DecisionLogConfig, WITHHELD};
use crate::connections::{Entry, Operation};
use crate::decisions::Unasked;
use crate::error::Reason;
use crate::sidecar::Sidecar;

/// Longest value that is shown, in bytes, and most lines of all fields.
const MAX_VALUE: usize = 1_024;
const MAX_LINES: usize = 64;

pub(super) struct Lines {
    sidecar: String,
    show: Vec<String>,
    allow: f64,
    deny: f64,
    /// Masks values: equal ones look equal within one run, and nobody can try values out.
    key: Option<hmac::Key>,
}

impl Lines {
    pub(super) fn new(config: &DecisionLogConfig, identity: &str) -> Self {
        let mut random = [0_u8; 32];
        // Without randomness every value is withheld.
        let is_random = aws_lc_rs::rand::fill(&mut random).is_ok();
        let key = is_random.then(|| hmac::Key::new(hmac::HMAC_SHA256, &random));
        let DecisionLogConfig { show_headers, allow, deny, .. } = config;
        Self { sidecar: identity.to_owned(), show: show_headers.clone(), allow: *allow, deny: *deny, key }
    }

    pub(super) fn of(&self, note: &Note, sidecar: &Sidecar) -> String {
        let value = match note {
            Note::Decision { id, at, entry, verdict, without, generation } => {
                let generation = generation.as_deref();
                let digest = generation.and_then(|generation| {
                    let history = sidecar.history.lock();
                    let mut marks = history.remembered();
                    marks.find(|mark| mark.number == generation.number()).map(|mark| mark.digest.clone())
                });
                let mut value = self.decision(entry, *verdict, *without, generation);
                value["id"] = id.to_string().into();
                value["time"] = rfc3339(*at).into();
                value["generation"] = generation.map(Generation::number).into();
                value["digest"] = digest.into();
                value
            }
            Note::End { id, at, status, lasted, bytes, outcome } => json!({
                "v": 1, "kind": "end", "time": rfc3339(*at), "id": id.to_string(),
                "status": Some(*status).filter(|status| *status != 0),
                "millis": u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
                "responseBytes": bytes, "outcome": outcome,
            }),
            Note::Flush(_) => return String::new(),
        };
        format!("{value}\n")
    }

    pub(super) fn dropped(&self, at: SystemTime, count: u64) -> String {
        let value = json!({
            "v": 1, "kind": "dropped", "time": rfc3339(at), "sidecar": self.sidecar, "count": count,
        });
        format!("{value}\n")
    }

    fn decision(
        &self,
        entry: &Entry,
        verdict: Option<Verdict>,
        without: Option<Unasked>,
        generation: Option<&Generation>,
    ) -> Value {
        let name = |rule: RuleId| generation.map(|generation| generation.rule(rule).to_string());
        let word = |effect: Effect| if effect == Effect::Allow { "allow" } else { "deny" };
        let allowed = verdict.is_some_and(|verdict| verdict.is_allowed());
        let reason = match verdict.map(|verdict| verdict.effect) {
            None => without.map_or(Reason::NoPolicy, |without| without.reason).label(),
            Some(Effect::Allow) => "rule",
            Some(Effect::Deny(reason)) => reason.label(),
        };
        let connection = &entry.connection;
        let mut value = json!({
            "v": 1,
            "kind": "decision",
            "sampled": if allowed { self.allow } else { self.deny },
            "sidecar": self.sidecar,
            "direction": connection.direction.label(),
            "peer": connection.peer.identity.as_ref().map(SpiffeId::as_str),
            "address": connection.peer.address.ip().to_canonical(),
            "destination": entry.facts.destination,
            "port": entry.facts.port,
            "effect": if allowed { "allow" } else { "deny" },
            "reason": reason,
            "tokenError": without.and_then(|without| without.token),
            "rule": verdict.and_then(|verdict| verdict.rule).and_then(name),
            "shadow": verdict.and_then(|verdict| verdict.shadow).map(|would| {
                json!({ "effect": word(would.effect), "rule": would.rule.and_then(name) })
            }),
            "audit": verdict.and_then(|verdict| verdict.audit).and_then(name),
        });
        match &entry.facts.operation {
            Operation::Http { method, path, host, headers, upgrade, tokens: _ } => {
                value["protocol"] = "http".into();
                value["method"] = method.as_str().into();
                value["path"] = path.path().into();
                value["host"] = host.to_string().into();
                value["upgrade"] = upgrade.as_ref().map(Upgrade::as_str).into();
                let names = generation.map(Generation::headers_named).unwrap_or_default();
                value["headers"] = self.headers(headers, names);
            }
            Operation::Tcp => value["protocol"] = "tcp".into(),
            Operation::Tls { sni } => {
                value["protocol"] = "tls".into();
                value["sni"] = sni.as_ref().map(ToString::to_string).into();
            }
        }
        value
    }

    /// The fields that rules asked for.
    fn headers(&self, headers: &dyn HeaderLines, names: &[Box<str>]) -> Value {
        let mut out = Vec::new();
        for name in names {
            headers.each(name, &mut |line| {
                if out.len() < MAX_LINES {
                    out.push(self.header(name, line));
                }
            });
        }
        out.into()
    }

    fn header(&self, name: &str, line: &[u8]) -> Value {
        if WITHHELD.contains(&name) {
            return json!({ "name": name, "withheld": true });
        }
        let shown = std::str::from_utf8(line).ok().filter(|text| text.len() <= MAX_VALUE);
        if let Some(text) = shown.filter(|_| self.show.iter().any(|shown| shown == name)) {
            return json!({ "name": name, "value": text });
        }
        let Some(key) = &self.key else { return json!({ "name": name, "withheld": true }) };
        let mask = hmac::sign(key, line);
        let mask: String = mask.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        json!({ "name": name, "masked": mask })
    }
}

fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

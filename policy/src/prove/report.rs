//! The invariants of a set's PolicyTests, proven one by one, in words for people.

use super::{Invariant, Outcome, Witness, prove};
use crate::check::Test;
use crate::fields::{HeaderFields, HeaderLines};
use crate::generation::Generation;
use crate::load::Checked;
use crate::norm::{CanonHost, CanonMethod, CanonPath, EscapedSlashes, PathOptions};
use crate::testing::InvariantResult;
use crate::tokens::Tokens;
use crate::upgrade::Upgrade;
use crate::verdict::{Operation, Source};

/// All invariants of a set, in its order.
pub(crate) fn results(checked: &Checked) -> Vec<InvariantResult> {
    let mut out = Vec::new();
    for test in checked.tests.iter().filter(|test| !test.invariants.is_empty()) {
        // Its own, for times are told to it.
        let generation = checked.compiled(&test.workload, 0);
        out.extend(test.invariants.iter().map(|invariant| result(&generation, test, invariant)));
    }
    out
}

fn result(generation: &Generation, test: &Test, invariant: &Invariant) -> InvariantResult {
    let mut out = InvariantResult {
        test: format!("{}/{}", test.namespace, test.name),
        invariant: invariant.name.clone(),
        place: invariant.place.clone(),
        proven: false,
        classes: None,
        outcome: String::new(),
        witness: None,
        explanation: None,
    };
    let word = if invariant.is_never() { "allowed" } else { "denied" };
    let rule = |witness: &Witness| match witness.rule {
        Some(id) => format!("by {}", generation.rule(id)),
        None => "by default".to_owned(),
    };
    match prove(&generation.engine, invariant) {
        Outcome::Proven(classes) => {
            let s = if classes == 1 { "" } else { "es" };
            out.outcome = format!("proven over {classes} class{s} of requests");
            out.classes = Some(classes);
            out.proven = true;
        }
        Outcome::Broken(witness) => {
            out.outcome = format!("a request is {word} {}", rule(&witness));
            out.witness = Some(line(test, &witness));
            out.explanation = explanation(generation, &witness);
        }
        Outcome::Open(witness) => {
            out.outcome = format!(
                "not proven: with other header fields or tokens, at another time, under another condition or in another \
                 reading of its path, a request like this one may be {word} {}",
                rule(&witness)
            );
            out.witness = Some(line(test, &witness));
        }
        Outcome::Empty => {
            out.outcome = "it speaks of no request: what it asks for excludes itself".to_owned();
        }
        Outcome::TooLarge(what) => {
            out.outcome = format!(
                "too large to prove: {what}; narrow it with `from`, `ports` or `paths`, or write several invariants"
            );
        }
    }
    out
}

/// What `postern policy explain DOCUMENTS` takes.
fn line(test: &Test, witness: &Witness) -> String {
    let workload = &test.workload;
    let labels: Vec<String> = workload.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!(
        "--to {}/{}:{} --labels '{}' {witness}",
        workload.namespace,
        workload.service_account,
        witness.port,
        labels.join(",")
    )
}

fn explanation(generation: &Generation, witness: &Witness) -> Option<String> {
    let source = Source { identity: witness.identity.as_ref(), address: witness.address };
    let host = |text: &String| CanonHost::parse(text).ok();
    let Some((method, path)) = &witness.request else {
        let sni = witness.sni.as_ref().map(|sni| sni.as_ref().and_then(host));
        let operation = match &sni {
            Some(sni) => Operation::Tls { sni: sni.as_ref() },
            None => Operation::Tcp,
        };
        return Some(generation.explain(source, witness.port, operation).to_string());
    };
    let mut fields = HeaderFields::new();
    for (name, value) in &witness.headers {
        fields.push(name, value).ok()?;
    }
    let method = CanonMethod::parse(method).ok()?;
    let options = PathOptions { escaped_slashes: EscapedSlashes::Keep, ..PathOptions::default() };
    let path = CanonPath::parse_for(&method, path, &options).ok()?;
    let host = witness.host.as_ref().and_then(host);
    let upgrade = witness.upgrade.as_ref().and_then(|name| Upgrade::parse(name).ok());
    let operation = Operation::Http {
        method: &method,
        path: &path,
        host: host.as_ref(),
        headers: Some(&fields as &dyn HeaderLines),
        upgrade: upgrade.as_ref(),
        tokens: Tokens::Absent,
    };
    Some(generation.explain(source, witness.port, operation).to_string())
}

//! Why a question is answered as it is, for people.

use std::fmt;

use serde::Serialize;

use crate::eval_ref::{self, Truth};
use crate::generation::Generation;
use crate::rule::{Methods, OwnDomains, Peer, Rule, Target};
use crate::verdict::{Action, DenyReason, Effect, Operation, RuleName, Source, Verdict};

/// Why a question is answered as it is.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The engine's answer.
    #[serde(serialize_with = "verdict")]
    pub verdict: Verdict,
    /// The rule that decided, with its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
    /// Other readings of the path that had to be allowed too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub readings: Vec<String>,
    /// If nothing allowed it: the Allow rule that came closest. None if no Allow rule concerns this workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Miss>,
}

/// An Allow rule that nearly matched.
#[derive(Clone, Debug, Serialize)]
pub struct Miss {
    /// The rule.
    pub rule: RuleName,
    /// What did not match, one sentence a field.
    pub failed: Vec<String>,
    /// The change that would allow the request.
    pub change: String,
}

/// A field that did not match: what is wrong with it and what would mend it.
struct Failure {
    what: String,
    change: String,
}

pub(crate) fn explain(
    generation: &Generation,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
) -> Explanation {
    let verdict = generation.decide(&generation.connection(source), port, operation);
    let rule = verdict.rule.map(|id| generation.rule(id).clone());
    let readings = match operation {
        Operation::Http { path, .. } => path.views().skip(1).map(str::to_owned).collect(),
        Operation::Tcp => Vec::new(),
    };
    let nearest = match verdict.effect {
        Effect::Deny(DenyReason::NoRule) => nearest(generation, source, port, operation),
        _ => None,
    };
    Explanation { verdict, rule, readings, nearest }
}

/// The Allow rule with the fewest failing fields; of several, the first. With several readings of the path the miss is
/// about the first of them that nothing allows.
fn nearest(generation: &Generation, source: Source<'_>, port: u16, operation: Operation<'_>) -> Option<Miss> {
    let engine = &generation.engine;
    let allowed = |view: Option<&str>| {
        engine.rules.iter().any(|rule| {
            rule.action == Action::Allow
                && eval_ref::matches(rule, &engine.domains, source, port, operation, view) == Truth::True
        })
    };
    let view = match operation {
        Operation::Http { path, .. } => Some(path.views().find(|view| !allowed(Some(view)))?),
        Operation::Tcp => None,
    };
    let allows = engine.rules.iter().zip(&generation.names).filter(|(rule, _)| rule.action == Action::Allow);
    let (failures, name) = allows
        .map(|(rule, name)| (failures(rule, &engine.domains, source, port, operation, view), name))
        .min_by_key(|(failures, _)| failures.len())?;
    let changes: Vec<&str> = failures.iter().map(|failure| failure.change.as_str()).collect();
    let change = format!("in rule {name} ({}): {}", name.place, changes.join("; and "));
    Some(Miss { rule: name.clone(), failed: failures.iter().map(|f| f.what.clone()).collect(), change })
}

/// The failing fields of a rule, taking of each list of alternatives the one that fails least.
fn failures(
    rule: &Rule,
    domains: &OwnDomains,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
    view: Option<&str>,
) -> Vec<Failure> {
    let Rule { action: _, target_ports, from, to } = rule;
    let mut out = Vec::new();
    if let Some(ports) = target_ports
        && !ports.contains(&port)
    {
        out.push(Failure {
            what: format!("the document's target is for {}, not port {port}", list(ports, "port", "ports")),
            change: format!("add {port} to the ports of `target`"),
        });
    }
    out.extend(match from {
        Some(peers) => least(peers.iter().map(|peer| peer_failures(peer, domains, source))),
        None if source.identity.is_none() => vec![unauthenticated()],
        None => Vec::new(),
    });
    out.extend(match to {
        Some(targets) => least(targets.iter().map(|target| target_failures(target, port, operation, view))),
        None => method_failure(None, operation).into_iter().collect(),
    });
    out
}

fn least(alternatives: impl Iterator<Item = Vec<Failure>>) -> Vec<Failure> {
    alternatives.min_by_key(Vec::len).unwrap_or_default()
}

fn unauthenticated() -> Failure {
    Failure {
        what: "the peer proved no identity".to_owned(),
        change:
            "call through a sidecar, or add an alternative `unauthenticated: true` with `cidrs` to `from`"
                .to_owned(),
    }
}

/// Field by field: each is asked of the interpreter as a peer with that field alone.
fn peer_failures(peer: &Peer, domains: &OwnDomains, source: Source<'_>) -> Vec<Failure> {
    let Peer { unauthenticated: only_strangers, spiffe, accounts, namespaces, trust_domain, cidrs, not } =
        peer;
    let mut out = Vec::new();
    if let Some(nets) = cidrs
        && !nets.iter().any(|net| crate::rule::contains(net, source.address))
    {
        out.push(Failure {
            what: format!(
                "the address {} is in none of {}",
                source.address.to_canonical(),
                list(nets, "", "")
            ),
            change: format!("add {} to `cidrs`", source.address.to_canonical()),
        });
    }
    let Some(id) = source.identity else {
        if !only_strangers {
            out.push(unauthenticated());
        }
        return out;
    };
    if *only_strangers {
        out.push(Failure {
            what: format!("the alternative is for peers without an identity; this one is {id}"),
            change: format!("add an alternative `spiffe: [\"{id}\"]` to `from`"),
        });
        return out;
    }
    let holds = |peer: Peer| eval_ref::peer(&peer, domains, source, Action::Allow);
    let scoped = || Peer { trust_domain: trust_domain.clone(), ..Peer::default() };
    let mut field = |what: String, change: String| out.push(Failure { what, change });
    if let Some(ids) = spiffe
        && !ids.contains(id)
    {
        field(format!("{id} is not {}", list(ids, "", "one of")), format!("add {id} to `spiffe`"));
    }
    let short = id.namespace_and_account().map(|(namespace, name)| format!("{namespace}/{name}"));
    if accounts.is_some() && !holds(Peer { accounts: accounts.clone(), ..scoped() }) {
        let known =
            list(accounts.as_deref().unwrap_or_default(), "service account", "one of the service accounts");
        let change = match &short {
            Some(short) if domains.contain(id) && trust_domain.is_none() => {
                format!("add {short} to `serviceAccounts`")
            }
            _ => format!("add an alternative `spiffe: [\"{id}\"]` to `from`"),
        };
        field(format!("{id} is not {known}"), change);
    }
    if namespaces.is_some() && !holds(Peer { namespaces: namespaces.clone(), ..scoped() }) {
        let known = list(namespaces.as_deref().unwrap_or_default(), "namespace", "one of the namespaces");
        field(
            format!("{id} is not in {known}"),
            format!("add an alternative `spiffe: [\"{id}\"]` to `from`"),
        );
    }
    if let Some(td) = trust_domain
        && !id.is_member_of(td)
    {
        field(
            format!("{id} is not in the trust domain {td}"),
            format!("change `trustDomain` to {}", id.trust_domain()),
        );
    }
    if not.is_some() && !holds(Peer { not: not.clone(), ..Peer::default() }) {
        field(format!("{id} or its address is excluded by `not`"), "take it out of `not`".to_owned());
    }
    out
}

fn target_failures(target: &Target, port: u16, operation: Operation<'_>, view: Option<&str>) -> Vec<Failure> {
    let Target { methods, paths, ports } = target;
    let mut out = Vec::new();
    if let Some(ports) = ports
        && !ports.contains(&port)
    {
        out.push(Failure {
            what: format!("port {port} is not {}", list(ports, "port", "one of the ports")),
            change: format!("add {port} to `ports`"),
        });
    }
    let Operation::Http { .. } = operation else {
        if methods.is_some() || paths.is_some() {
            out.push(Failure {
                what: "methods and paths are never known of opaque TCP".to_owned(),
                change: format!("add an alternative `ports: [{port}]` to `to`"),
            });
        }
        return out;
    };
    out.extend(method_failure(methods.as_ref(), operation));
    let path = view.unwrap_or("");
    if let Some(paths) = paths
        && !paths.iter().any(|pattern| pattern.matches(path))
    {
        out.push(Failure {
            what: format!("the path {path} is not {}", list(paths, "", "one of")),
            change: format!("add {path} to the paths"),
        });
    }
    out
}

fn method_failure(methods: Option<&Methods>, operation: Operation<'_>) -> Option<Failure> {
    let Operation::Http { method, .. } = operation else { return None };
    if Methods::cover(methods, Action::Allow, method) {
        return None;
    }
    let what = match methods {
        Some(Methods::Only(named)) => format!("the method {method} is not {}", list(named, "", "one of")),
        Some(Methods::Any) | None => format!("the method {method} is allowed only by name"),
    };
    Some(Failure { what, change: format!("add {method} to `methods`") })
}

/// `a`, or `one of a, b, c`, cut where nobody reads on.
fn list<T: fmt::Display>(items: &[T], one: &str, many: &str) -> String {
    const SHOWN: usize = 8;
    let mut words: Vec<String> = items.iter().take(SHOWN).map(ToString::to_string).collect();
    if let Some(more) = items.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        words.push(format!("{more} more"));
    }
    let lead = if items.len() == 1 { one } else { many };
    let space = if lead.is_empty() { "" } else { " " };
    format!("{lead}{space}{}", words.join(", "))
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.verdict.effect, &self.rule) {
            (Effect::Allow, Some(rule)) => write!(f, "allowed by rule {rule} ({})", rule.place)?,
            (Effect::Allow, None) => f.write_str("allowed")?,
            (Effect::Deny(DenyReason::Rule), Some(rule)) => {
                write!(f, "denied by rule {rule} ({})", rule.place)?
            }
            (Effect::Deny(DenyReason::StaleContext), _) => {
                f.write_str("denied: the question is out of date")?
            }
            (Effect::Deny(_), _) => f.write_str("denied: no Allow rule matches")?,
        }
        if !self.readings.is_empty() {
            write!(
                f,
                "\nthe path can also be read as {}; every reading must be allowed",
                self.readings.join(", ")
            )?;
        }
        let Some(miss) = &self.nearest else {
            return match self.verdict.effect {
                Effect::Deny(DenyReason::NoRule) => f.write_str("\nno Allow rule concerns this workload"),
                _ => Ok(()),
            };
        };
        write!(f, "\nnearest: rule {} ({})", miss.rule, miss.rule.place)?;
        for failed in &miss.failed {
            write!(f, "\n  - {failed}")?;
        }
        write!(f, "\nto allow it: {}", miss.change)
    }
}

fn verdict<S: serde::Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Answer {
        allowed: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
        generation: u64,
    }
    let reason = match verdict.effect {
        Effect::Allow => None,
        Effect::Deny(reason) => Some(reason.label()),
    };
    Answer { allowed: verdict.is_allowed(), reason, generation: verdict.generation }.serialize(serializer)
}

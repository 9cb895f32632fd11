//! Why a question is answered as it is, for people.

mod condition;
pub(crate) mod egress;
mod jwt;

use std::fmt;

use serde::Serialize;

use crate::eval_ref::{self, Truth};
use crate::generation::Generation;
use crate::istio;
use crate::limits::LimitName;
use crate::norm::CanonMethod;
use crate::pattern::PathPattern;
use crate::rule::{HeaderMatch, HeaderTest, HostPattern, ListOf, Methods, OwnDomains, Peer, Rule, Target};
use crate::upgrade::{Upgrade, Upgrades};
use crate::verdict::{Action, DenyReason, Effect, Enforcement, Operation, RuleName, Source, Verdict};

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
    /// What holds besides rules, of a call out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What shadow rules would change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// The Audit rule that marks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<RuleName>,
    /// If nothing allowed it: the Allow rule that came closest. None if no Allow rule concerns this workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Miss>,
    /// Rate limits that count it, obeyed or in the shadow, if it is allowed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitName>,
}

/// What a shadow rule would do.
#[derive(Clone, Debug, Serialize)]
pub struct Shadow {
    /// Whether it would be allowed.
    pub allowed: bool,
    /// The rule that would decide. None: a call out would be denied because no rule of the shadow lists it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleName>,
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

/// A field that did not match.
struct Failure {
    what: String,
    /// What mends it where it stands. `None`: no word added there would be taken, or it would not be enough; then it
    /// takes an alternative of its own.
    change: Option<String>,
}

pub(crate) fn explain(
    generation: &Generation,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
) -> Explanation {
    let connection = generation.connection(source);
    let verdict = generation.decide(&connection, port, operation);
    let rule = verdict.rule.map(|id| generation.rule(id).clone());
    let readings = match operation {
        Operation::Http { path, .. } => path.views().skip(1).map(str::to_owned).collect(),
        Operation::Tcp | Operation::Tls { .. } => Vec::new(),
    };
    let nearest = match verdict.effect {
        Effect::Deny(DenyReason::NoRule) => nearest(generation, source, port, operation),
        _ => None,
    };
    let shadow = verdict.shadow.map(|would| Shadow {
        allowed: would.effect == Effect::Allow,
        rule: would.rule.map(|rule| generation.rule(rule).clone()),
    });
    let audit = verdict.audit.map(|id| generation.rule(id).clone());
    let limits = match verdict.effect {
        Effect::Allow => generation.limits_of(&connection, source, port, operation),
        Effect::Deny(_) => Vec::new(),
    };
    let limits = limits.into_iter().cloned().collect();
    let unknown = match verdict.effect {
        Effect::Deny(_) => condition::unknown(generation, verdict.rule, source, port, operation),
        Effect::Allow => None,
    };
    let notes = unknown.map(|unknown| format!("{unknown}; a Deny fires then")).into_iter().collect();
    Explanation { verdict, rule, readings, notes, shadow, audit, nearest, limits }
}

/// The Allow rule with the fewest failing fields; of several, the first. With several readings of the path the miss is
/// about all of them that nothing allows: whoever mends one of them is denied for the next.
fn nearest(generation: &Generation, source: Source<'_>, port: u16, operation: Operation<'_>) -> Option<Miss> {
    let engine = &generation.engine;
    let grants = |rule: &Rule| rule.action == Action::Allow && rule.enforcement == Enforcement::Enforce;
    let allowed = |view: Option<&str>| {
        engine.rules.iter().any(|rule| {
            grants(rule)
                && eval_ref::matches(rule, &engine.domains, source, port, operation, view, engine.told())
                    == Truth::True
        })
    };
    let views: Vec<&str> = match operation {
        Operation::Http { path, .. } => path.views().filter(|view| !allowed(Some(view))).collect(),
        Operation::Tcp | Operation::Tls { .. } => Vec::new(),
    };
    let allows = engine.rules.iter().zip(&generation.names).filter(|(rule, _)| grants(rule));
    let (misfit, name) = allows
        .map(|(rule, name)| (self::misfit(rule, generation, source, port, operation, &views), name))
        .min_by_key(|(misfit, _)| misfit.failed.len())?;
    let Misfit { failed, changes } = misfit;
    let change = format!("in rule {name} ({}): {}", name.place, changes.join("; and "));
    Some(Miss { rule: RuleName::clone(name), failed, change })
}

/// What keeps a rule from matching, and all that has to be changed in it.
#[derive(Default)]
struct Misfit {
    failed: Vec<String>,
    changes: Vec<String>,
}

impl Misfit {
    /// Adds the failures of one list of alternatives; `alternative` says how to add one that does not fail.
    fn add(&mut self, failures: Vec<Failure>, alternative: impl FnOnce() -> String) {
        let changes: Option<Vec<String>> = failures.iter().map(|failure| failure.change.clone()).collect();
        match changes {
            Some(changes) => self.changes.extend(changes),
            None => self.changes.push(alternative()),
        }
        self.failed.extend(failures.into_iter().map(|failure| failure.what));
    }
}

/// The failing fields of a rule, taking of each list of alternatives the one that fails least.
fn misfit(
    rule: &Rule,
    generation: &Generation,
    source: Source<'_>,
    port: u16,
    operation: Operation<'_>,
    views: &[&str],
) -> Misfit {
    let Rule { action, tier: _, enforcement: _, target_ports, from, to, window, condition, istio } = rule;
    let domains = &generation.engine.domains;
    let mut out = Misfit::default();
    if let Some(clause) = istio {
        out.failed = istio::failures(clause, *action, source, port, operation, views);
        out.changes.push("add an alternative that means this request".to_owned());
        return out;
    }
    if let Some(ports) = target_ports
        && !ports.contains(&port)
    {
        out.failed
            .push(format!("the document's target is for {}, not port {port}", list(ports, "port", "ports")));
        out.changes.push(format!("add {port} to the ports of `target`"));
    }
    if let Some(window) = window
        && !generation.engine.told().is_some_and(|at| window.is_open(at))
    {
        out.failed.push("it does not hold at this time".to_owned());
        out.changes.push("wait, or add hours to `when`".to_owned());
    }
    let each = |peer| (peer_failures(peer, domains, source, operation), peer.asks_tokens());
    let (who, with_token) = match from {
        Some(peers) => peers.iter().map(each).min_by_key(|(failed, _)| failed.len()).unwrap_or_default(),
        None if source.identity.is_none() => (vec![unauthenticated()], false),
        None => (Vec::new(), false),
    };
    out.add(who, || from_alternative(from.as_deref(), source, with_token));
    let slashes = generation.nameable;
    let nameable = views.iter().all(|path| PathPattern::parse(path, slashes).is_ok());
    let paths = nameable.then_some(views);
    let what = match to {
        Some(targets) => {
            least(targets.iter().map(|target| target_failures(target, port, operation, views, paths)))
        }
        None => method_failure(None, operation).into_iter().collect(),
    };
    out.add(what, || to_alternative(to.is_some(), port, operation, paths));
    if let Some(condition) = condition {
        let readings = views.iter().copied().map(Some).chain(views.is_empty().then_some(None));
        if let Some(failed) = condition::failure(condition, generation, source, port, operation, readings) {
            out.failed.push(failed);
            out.changes.push("change the condition `cel`, or the request".to_owned());
        }
    }
    out
}

/// The alternative of `from` that means this peer and nobody else. A list that is not there means more than any that is:
/// an alternative is never proposed for it.
fn from_alternative(from: Option<&[Peer]>, source: Source<'_>, with_token: bool) -> String {
    let address = source.address.to_canonical();
    let alternative = match source.identity {
        Some(id) => format!("{{spiffe: [\"{id}\"]}}"),
        None => format!("{{unauthenticated: true, cidrs: [\"{address}\"]}}"),
    };
    let lead = if source.identity.is_none() { "call through a sidecar, or " } else { "" };
    // Without it the alternative would open more than the rule does.
    let token = if with_token { ", with the same demands on tokens (`jwt`)" } else { "" };
    match from {
        Some(_) => format!("{lead}add an alternative `{alternative}` to `from`{token}"),
        None => format!("{lead}add a copy of it under another name with `from: [{alternative}]`"),
    }
}

/// The narrowest alternative of `to` that covers this operation; `paths` is `None` if no rule can name one of them.
fn to_alternative(has_to: bool, port: u16, operation: Operation<'_>, paths: Option<&[&str]>) -> String {
    let (alternative, warning) = match (operation, paths) {
        (Operation::Tcp, _) => {
            (format!("{{ports: [{port}]}}"), "; that allows every HTTP request on this port too")
        }
        (Operation::Tls { sni: Some(name) }, _) => {
            (format!("{{sni: [\"{}\"], ports: [{port}]}}", name.name()), "")
        }
        (Operation::Tls { sni: None }, _) => (
            format!("{{ports: [{port}]}}"),
            "; that allows every connection to this port, for this one asks for no server name",
        ),
        (Operation::Http { method, .. }, Some(paths)) => {
            let paths: Vec<String> = paths.iter().map(|path| format!("\"{path}\"")).collect();
            (format!("{{methods: [{method}], paths: [{}], ports: [{port}]}}", paths.join(", ")), "")
        }
        (Operation::Http { method, .. }, None) => (
            format!("{{methods: [{method}], ports: [{port}]}}"),
            "; that allows every path, for no rule can name this one",
        ),
    };
    match has_to {
        true => format!("add an alternative `{alternative}` to `to`{warning}"),
        false => format!("add a copy of it under another name with `to: [{alternative}]`{warning}"),
    }
}

fn least(alternatives: impl Iterator<Item = Vec<Failure>>) -> Vec<Failure> {
    alternatives.min_by_key(Vec::len).unwrap_or_default()
}

fn unauthenticated() -> Failure {
    Failure { what: "the peer proved no identity".to_owned(), change: None }
}

/// Field by field: each is asked of the interpreter as a peer with that field alone.
fn peer_failures(
    peer: &Peer,
    domains: &OwnDomains,
    source: Source<'_>,
    operation: Operation<'_>,
) -> Vec<Failure> {
    let Peer {
        unauthenticated: only_strangers,
        spiffe,
        accounts,
        namespaces,
        trust_domain,
        cidrs,
        jwt: _,
        not,
    } = peer;
    let mut out = jwt::failures(peer, operation);
    if let Some(nets) = cidrs
        && !nets.iter().any(|net| crate::rule::contains(net, source.address))
    {
        out.push(Failure {
            what: format!(
                "the address {} is in none of {}",
                source.address.to_canonical(),
                list(nets, "", "")
            ),
            change: Some(format!("add {} to `cidrs`", source.address.to_canonical())),
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
            change: None,
        });
        return out;
    }
    let holds = |peer: Peer| eval_ref::peer(&peer, domains, source, Action::Allow);
    let scoped = || Peer { trust_domain: trust_domain.clone(), ..Peer::default() };
    let mut field = |what: String, change: Option<String>| out.push(Failure { what, change });
    if let Some(ids) = spiffe
        && !ids.contains(id)
    {
        field(format!("{id} is not {}", list(ids, "", "one of")), Some(format!("add {id} to `spiffe`")));
    }
    let short = id.namespace_and_account().map(|(namespace, name)| format!("{namespace}/{name}"));
    if accounts.is_some() && !holds(Peer { accounts: accounts.clone(), ..scoped() }) {
        let known =
            list(accounts.as_deref().unwrap_or_default(), "service account", "one of the service accounts");
        let change = short
            .as_ref()
            .filter(|_| domains.contain(id) && trust_domain.is_none())
            .map(|short| format!("add {short} to `serviceAccounts`"));
        field(format!("{id} is not {known}"), change);
    }
    if namespaces.is_some() && !holds(Peer { namespaces: namespaces.clone(), ..scoped() }) {
        let known = list(namespaces.as_deref().unwrap_or_default(), "namespace", "one of the namespaces");
        // A namespace more would let in everybody of it.
        field(format!("{id} is not in {known}"), None);
    }
    if let Some(td) = trust_domain
        && !id.is_member_of(td)
    {
        field(format!("{id} is not in the trust domain {td}"), None);
    }
    if not.is_some() && !holds(Peer { not: not.clone(), ..Peer::default() }) {
        field(format!("{id} or its address is excluded by `not`"), None);
    }
    out
}

/// `nameable` is there if rules can name every reading.
fn target_failures(
    target: &Target,
    port: u16,
    operation: Operation<'_>,
    views: &[&str],
    nameable: Option<&[&str]>,
) -> Vec<Failure> {
    let Target { methods, paths, grpc, hosts, headers, upgrade, sni, ports, not } = target;
    let mut out = Vec::new();
    if let Some(ports) = ports
        && !ports.contains(&port)
    {
        out.push(Failure {
            what: format!("port {port} is not {}", list(ports, "port", "one of the ports")),
            change: Some(format!("add {port} to `ports`")),
        });
    }
    // Opaque bytes have one reading, of which nothing is known.
    let readings = views.iter().copied().map(Some).chain(views.is_empty().then_some(None));
    if let Some(not) = not
        && readings
            .into_iter()
            .any(|view| eval_ref::excludes_operation(not, port, operation, view) == Truth::True)
    {
        out.push(Failure { what: "the operation is excluded by `not`".to_owned(), change: None });
    }
    out.extend(sni.as_ref().and_then(|names| sni_failure(names, operation)));
    if operation.is_unread() && not.as_ref().is_some_and(|not| !not.sni.is_empty()) {
        out.push(Failure {
            what: "whether the server name is excluded is not known".to_owned(),
            change: None,
        });
    }
    let Operation::Http { host, upgrade: asked, .. } = operation else {
        if target.asks_layer7() {
            out.push(Failure {
                what: "methods, paths, hosts, header fields and upgrades are never known of opaque TCP"
                    .to_owned(),
                change: None,
            });
        }
        return out;
    };
    out.extend(
        method_failure(methods.as_ref(), operation)
            .map(|failure| Failure { change: failure.change.filter(|_| !grpc), ..failure }),
    );
    if let Some(paths) = paths {
        // A prefix more would open what lies below too, and `paths` cannot stand beside `pathPrefix` or `grpc`.
        let is_prefix = paths.iter().any(|pattern| matches!(pattern, PathPattern::Prefix(_)));
        let missed = views.iter().filter(|view| !paths.iter().any(|pattern| pattern.matches(view)));
        out.extend(missed.map(|view| Failure {
            what: format!("the path {view} is not {}", list(paths, "", "one of")),
            change: nameable.filter(|_| !is_prefix && !grpc).map(|_| format!("add {view} to `paths`")),
        }));
    }
    if let Some(hosts) = hosts {
        match host {
            Some(host) if hosts.iter().any(|pattern| pattern.matches(host)) => {}
            Some(host) => out.push(Failure {
                what: format!("the host {} is not {}", host.name(), list(hosts, "", "one of")),
                change: Some(format!("add {} to `hosts`", host.name())),
            }),
            None => out.push(Failure { what: "the host is not known".to_owned(), change: None }),
        }
    }
    if let Some(upgrades) = upgrade
        && !upgrades.cover(asked)
    {
        out.push(upgrade_failure(upgrades, asked));
    }
    if host.is_none() && not.as_ref().is_some_and(|not| !not.hosts.is_empty()) {
        out.push(Failure { what: "whether the host is excluded is not known".to_owned(), change: None });
    }
    for field in headers {
        match eval_ref::header(field, Action::Allow, operation) {
            Truth::True => {}
            Truth::Unknown => out.push(Failure {
                what: format!("the header field `{}` is not known", field.name),
                change: None,
            }),
            Truth::False => out.push(Failure { what: header_failure(field), change: None }),
        }
    }
    out
}

fn upgrade_failure(upgrades: &Upgrades, asked: Option<&Upgrade>) -> Failure {
    match asked {
        Some(asked) => Failure {
            what: format!("the upgrade to {} is not {upgrades}", asked.as_str()),
            change: Some(format!("add {} to `upgrade`", asked.as_str())),
        },
        None => Failure { what: format!("the request does not ask for {upgrades}"), change: None },
    }
}

fn sni_failure(names: &[HostPattern], operation: Operation<'_>) -> Option<Failure> {
    let (what, change) = match operation {
        Operation::Tls { sni: Some(name) } if names.iter().any(|pattern| pattern.matches(name)) => {
            return None;
        }
        Operation::Tls { sni: Some(name) } => (
            format!("the server name {} is not {}", name.name(), list(names, "", "one of")),
            Some(format!("add {} to `sni`", name.name())),
        ),
        Operation::Tls { sni: None } => ("the TLS handshake asks for no server name".to_owned(), None),
        Operation::Tcp => ("the server name is not known".to_owned(), None),
        Operation::Http { .. } => ("a request that can be read has no server name of TLS".to_owned(), None),
    };
    Some(Failure { what, change })
}

fn header_failure(field: &HeaderMatch) -> String {
    let name = &field.name;
    match &field.test {
        HeaderTest::Present => format!("there is no header field `{name}`"),
        HeaderTest::Absent => format!("there is a header field `{name}`"),
        HeaderTest::Is(values, of) => {
            let count = match of {
                ListOf::One => "the one value",
                ListOf::Any => "any value",
                ListOf::All => "every value",
            };
            format!("the header field `{name}` is not {}: {count} must be", list(values, "", "one of"))
        }
        HeaderTest::Not(values) => {
            format!("the header field `{name}` is missing, or is {}", list(values, "", "one of"))
        }
    }
}

fn method_failure(methods: Option<&Methods>, operation: Operation<'_>) -> Option<Failure> {
    let Operation::Http { method, .. } = operation else { return None };
    if Methods::cover(methods, Action::Allow, method) {
        return None;
    }
    Some(match methods {
        Some(Methods::Only(named)) => Failure {
            what: format!("the method {method} is not {}", list(named, "", "one of")),
            // Rules do not take a common method in small letters, which it is not: methods are compared by case.
            change: (!CanonMethod::is_registered(&method.as_str().to_ascii_uppercase())
                || CanonMethod::is_registered(method.as_str()))
            .then(|| format!("add {method} to `methods`")),
        },
        // `*` stands alone, and a list where there was none would leave out everything else.
        Some(Methods::Any) | None => {
            Failure { what: format!("the method {method} is allowed only by name"), change: None }
        }
    })
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
            (Effect::Deny(DenyReason::Address), _) => {
                f.write_str("denied: nobody outside of the mesh is called at this address")?
            }
            (Effect::Deny(_), _) => f.write_str("denied: no Allow rule matches")?,
        }
        for note in &self.notes {
            write!(f, "\n{note}")?;
        }
        if !self.readings.is_empty() {
            write!(
                f,
                "\nthe path can also be read as {}; every reading must be allowed",
                self.readings.join(", ")
            )?;
        }
        if let Some(Shadow { allowed, rule }) = &self.shadow {
            let word = if *allowed { "allow" } else { "deny" };
            match rule {
                Some(rule) => {
                    write!(f, "\nin the shadow: rule {rule} ({}) would {word} it", rule.place)?;
                }
                None => write!(f, "\nin the shadow: no Allow rule lists it, which would {word} it")?,
            }
        }
        if let Some(rule) = &self.audit {
            write!(f, "\naudited by rule {rule} ({})", rule.place)?;
        }
        for limit in &self.limits {
            let shadow = if limit.enforcement == Enforcement::Shadow { " in the shadow" } else { "" };
            write!(f, "\ncounted by limit {limit}{shadow} ({})", limit.place)?;
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

//! What in a rule does not match, field by field.

use std::fmt;

use super::{jwt, propose};
use crate::eval_ref::{self, Truth};
use crate::pattern::PathPattern;
use crate::rule::{HeaderMatch, HeaderTest, HostPattern, ListOf, Methods, OwnDomains, Peer, Target};
use crate::upgrade::{Upgrade, Upgrades};
use crate::verdict::{Action, Operation, Source};

/// A field that did not match.
pub(super) struct Failure {
    pub(super) what: String,
    /// What mends it where it stands. `None`: no word added there would be taken, or it would not be enough; then it
    /// takes an alternative of its own.
    pub(super) change: Option<String>,
}

pub(super) fn least(alternatives: impl Iterator<Item = Vec<Failure>>) -> Vec<Failure> {
    alternatives.min_by_key(Vec::len).unwrap_or_default()
}

pub(super) fn unauthenticated() -> Failure {
    Failure { what: "the peer proved no identity".to_owned(), change: None }
}

/// Field by field: each is asked of the interpreter as a peer with that field alone.
pub(super) fn peer_failures(
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
            change: Some(format!(
                "add {} to `cidrs`",
                propose::text(&source.address.to_canonical().to_string())
            )),
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
pub(super) fn target_failures(
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
        out.extend(missed.map(|view| {
            Failure {
                what: format!("the path {view} is not {}", list(paths, "", "one of")),
                change: nameable
                    .filter(|_| !is_prefix && !grpc)
                    .map(|_| format!("add {} to `paths`", propose::text(view))),
            }
        }));
    }
    if let Some(hosts) = hosts {
        match host {
            Some(host) if hosts.iter().any(|pattern| pattern.matches(host)) => {}
            Some(host) => out.push(Failure {
                what: format!("the host {} is not {}", host.name(), list(hosts, "", "one of")),
                change: Some(format!("add {} to `hosts`", propose::host(host))),
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

pub(super) fn upgrade_failure(upgrades: &Upgrades, asked: Option<&Upgrade>) -> Failure {
    match asked {
        Some(asked) => Failure {
            what: format!("the upgrade to {} is not {upgrades}", asked.as_str()),
            // `*` is any of them to a rule.
            change: (asked.as_str() != "*")
                .then(|| format!("add {} to `upgrade`", propose::text(asked.as_str()))),
        },
        None => Failure { what: format!("the request does not ask for {upgrades}"), change: None },
    }
}

pub(super) fn sni_failure(names: &[HostPattern], operation: Operation<'_>) -> Option<Failure> {
    let (what, change) = match operation {
        Operation::Tls { sni: Some(name) } if names.iter().any(|pattern| pattern.matches(name)) => {
            return None;
        }
        Operation::Tls { sni: Some(name) } => (
            format!("the server name {} is not {}", name.name(), list(names, "", "one of")),
            Some(format!("add {} to `sni`", propose::text(name.name()))),
        ),
        Operation::Tls { sni: None } => ("the TLS handshake asks for no server name".to_owned(), None),
        Operation::Tcp => ("the server name is not known".to_owned(), None),
        Operation::Http { .. } => ("a request that can be read has no server name of TLS".to_owned(), None),
    };
    Some(Failure { what, change })
}

pub(super) fn header_failure(field: &HeaderMatch) -> String {
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

pub(super) fn method_failure(methods: Option<&Methods>, operation: Operation<'_>) -> Option<Failure> {
    let Operation::Http { method, .. } = operation else { return None };
    if Methods::cover(methods, Action::Allow, method) {
        return None;
    }
    Some(match methods {
        Some(Methods::Only(named)) => Failure {
            what: format!("the method {method} is not {}", list(named, "", "one of")),
            change: propose::method(method).map(|method| format!("add {method} to `methods`")),
        },
        // `*` stands alone, and a list where there was none would leave out everything else.
        Some(Methods::Any) | None => {
            Failure { what: format!("the method {method} is allowed only by name"), change: None }
        }
    })
}

/// `a`, or `one of a, b, c`, cut where nobody reads on.
pub(super) fn list<T: fmt::Display>(items: &[T], one: &str, many: &str) -> String {
    const SHOWN: usize = 8;
    let mut words: Vec<String> = items.iter().take(SHOWN).map(ToString::to_string).collect();
    if let Some(more) = items.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        words.push(format!("{more} more"));
    }
    let lead = if items.len() == 1 { one } else { many };
    let space = if lead.is_empty() { "" } else { " " };
    format!("{lead}{space}{}", words.join(", "))
}

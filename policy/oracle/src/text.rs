//! A rule as a Cedar policy.
//!
//! What is asked arrives as: the principal, an entity that stands below its account, its namespace and its trust domain;
//! and a context with `authenticated`, `address`, `port`, `tcp`, `method`, `path`, `host`, `segments` (their number),
//! `s0`, `s1`, ... (the path's segments from the left) and `r0`, ... (from the right).

use crate::model::{Model, NotWhat, NotWho, Side, TRUST_DOMAIN, What, Who};

/// The rule as the text of one policy.
pub fn policy(rule: &Model) -> String {
    let Model { side, tier: _, ports, from, to } = rule;
    let wide = *side == Side::Deny;
    let from = match from.as_slice() {
        [] if wide => "true".to_owned(),
        [] => "context.authenticated".to_owned(),
        peers => any(peers.iter().map(|peer| who(peer, wide))),
    };
    let to = match to.as_slice() {
        [] => any(["context.tcp".to_owned(), method(&[], wide)]),
        targets => any(targets.iter().map(|target| what(target, wide))),
    };
    let effect = if wide { "forbid" } else { "permit" };
    let body = all([one_of_ports(ports), from, to]);
    format!("{effect}(principal, action, resource) when {{ {body} }};")
}

fn who(peer: &Who, wide: bool) -> String {
    let Who { unauthenticated, spiffe, accounts, namespaces, trust_domain, cidrs, not } = peer;
    let domain = trust_domain.as_deref().unwrap_or(TRUST_DOMAIN);
    let in_cidrs = if cidrs.is_empty() { "true".to_owned() } else { one_of_nets(cidrs) };
    let mut known = vec!["context.authenticated".to_owned()];
    let mut field = |entities: Vec<String>| {
        if !entities.is_empty() {
            known.push(is_in(&entities));
        }
    };
    field(spiffe.iter().map(|id| entity("Id", id)).collect());
    field(accounts.iter().map(|name| entity("Account", &format!("{domain}/{name}"))).collect());
    field(namespaces.iter().map(|name| entity("Namespace", &format!("{domain}/{name}"))).collect());
    field(trust_domain.iter().map(|name| entity("Domain", name)).collect());
    let names = known.len() > 1;
    if let Some(not) = not {
        // Names in `not` are meant in the mesh's own trust domain, whatever is said beside it.
        known.push(format!("!({})", excluded(not, TRUST_DOMAIN)));
    }
    known.push(in_cidrs.clone());
    let anonymous = all(["!context.authenticated".to_owned(), in_cidrs]);
    match (unauthenticated, wide) {
        (true, _) => anonymous,
        // A Deny that names nobody, or only whom it spares, is about peers without a name as well.
        (false, true) if !names => any([all(known), anonymous]),
        (false, _) => all(known),
    }
}

fn excluded(not: &NotWho, domain: &str) -> String {
    let NotWho { spiffe, accounts, namespaces, cidrs } = not;
    let ids = spiffe.iter().map(|id| entity("Id", id));
    let accounts = accounts.iter().map(|name| entity("Account", &format!("{domain}/{name}")));
    let namespaces = namespaces.iter().map(|name| entity("Namespace", &format!("{domain}/{name}")));
    let entities: Vec<String> = ids.chain(accounts).chain(namespaces).collect();
    let mut out = Vec::new();
    if !entities.is_empty() {
        out.push(is_in(&entities));
    }
    if !cidrs.is_empty() {
        out.push(one_of_nets(cidrs));
    }
    any(out)
}

fn what(target: &What, wide: bool) -> String {
    let What { methods, paths, prefixes, hosts, ports, not } = target;
    let mut layer7 = Vec::new();
    if !methods.is_empty() {
        layer7.push(method(methods, wide));
    }
    if !paths.is_empty() || !prefixes.is_empty() {
        layer7.push(path(paths, prefixes));
    }
    if !hosts.is_empty() {
        layer7.push(one_of_hosts(hosts));
    }
    let mut spared_ports = "false".to_owned();
    if let Some(NotWhat { methods, paths, prefixes, hosts, ports }) = not {
        if !ports.is_empty() {
            spared_ports = one_of_ports(ports);
        }
        let mut spared = Vec::new();
        if !methods.is_empty() {
            spared.push(any(methods.iter().map(|name| format!("context.method == {}", quoted(name)))));
        }
        if !paths.is_empty() || !prefixes.is_empty() {
            spared.push(path(paths, prefixes));
        }
        if !hosts.is_empty() {
            spared.push(one_of_hosts(hosts));
        }
        if !spared.is_empty() {
            layer7.push(format!("!({})", any(spared)));
        }
    }
    // TRACE and CONNECT, which an Allow covers only by name.
    let unnamed = method(&[], wide);
    let on = all([one_of_ports(ports), format!("!({spared_ports})")]);
    let of = match (layer7.is_empty(), wide) {
        (true, _) => any(["context.tcp".to_owned(), unnamed]),
        (false, true) => any(["context.tcp".to_owned(), all(layer7)]),
        (false, false) => {
            if methods.is_empty() {
                layer7.insert(0, unnamed);
            }
            layer7.insert(0, "!context.tcp".to_owned());
            all(layer7)
        }
    };
    all([on, of])
}

fn method(names: &[String], wide: bool) -> String {
    let is_any = names.iter().all(|name| name == "*");
    match (is_any, wide) {
        (true, true) => "true".to_owned(),
        (true, false) => all(["TRACE", "CONNECT"].map(|name| format!("context.method != {}", quoted(name)))),
        (false, _) => any(names.iter().map(|name| format!("context.method == {}", quoted(name)))),
    }
}

fn path(paths: &[String], prefixes: &[String]) -> String {
    let paths = paths.iter().map(|path| {
        if path.contains('{') { template(path) } else { format!("context.path == {}", quoted(path)) }
    });
    let prefixes = prefixes.iter().map(|prefix| match prefix.as_str() {
        "/" => "context.path like \"/*\"".to_owned(),
        prefix => any([
            format!("context.path == {}", quoted(prefix)),
            format!("context.path like {}", like(&format!("{prefix}/"), true)),
        ]),
    });
    any(paths.chain(prefixes))
}

fn template(text: &str) -> String {
    let segments: Vec<&str> = text.trim_start_matches('/').split('/').collect();
    let one = |name: String, segment: &&str| match *segment {
        "{*}" => format!("context.{name} != \"\""),
        literal => format!("context.{name} == {}", quoted(literal)),
    };
    let many = segments.iter().position(|segment| *segment == "{**}");
    let head = many.unwrap_or(segments.len());
    let number = match many {
        None => format!("context.segments == {}", segments.len()),
        Some(_) => format!("context.segments >= {}", segments.len()),
    };
    let left = segments[..head].iter().enumerate().map(|(n, segment)| one(format!("s{n}"), segment));
    let tail = many.map_or(&[][..], |at| &segments[at + 1..]);
    let right = tail.iter().rev().enumerate().map(|(n, segment)| one(format!("r{n}"), segment));
    all([number].into_iter().chain(left).chain(right))
}

fn one_of_hosts(hosts: &[String]) -> String {
    any(hosts.iter().map(|host| match host.strip_prefix('*') {
        Some(below) => format!("context.host like \"*{}", &like(below, false)[1..]),
        None => format!("context.host == {}", quoted(host)),
    }))
}

fn one_of_ports(ports: &[u16]) -> String {
    if ports.is_empty() {
        return "true".to_owned();
    }
    any(ports.iter().map(|port| format!("context.port == {port}")))
}

fn one_of_nets(nets: &[String]) -> String {
    any(nets.iter().map(|net| format!("context.address.isInRange(ip({}))", quoted(net))))
}

fn is_in(entities: &[String]) -> String {
    format!("principal in [{}]", entities.join(", "))
}

fn entity(kind: &str, name: &str) -> String {
    format!("{kind}::{}", quoted(name))
}

fn all(parts: impl IntoIterator<Item = String>) -> String {
    joined(parts, " && ", "true")
}

fn any(parts: impl IntoIterator<Item = String>) -> String {
    joined(parts, " || ", "false")
}

fn joined(parts: impl IntoIterator<Item = String>, with: &str, none: &str) -> String {
    let parts: Vec<String> = parts.into_iter().filter(|part| part != "true" || with != " && ").collect();
    match parts.as_slice() {
        [] => none.to_owned(),
        [one] => one.clone(),
        parts => format!("({})", parts.join(with)),
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A pattern of `like`: the text as it stands, and a wildcard behind it.
fn like(text: &str, open: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('*', "\\*");
    format!("\"{text}{}\"", if open { "*" } else { "" })
}

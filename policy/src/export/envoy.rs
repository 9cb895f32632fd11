//! Envoy's RBAC: HTTP filters and network filters.
//!
//! Envoy asks one filter after the other and knows no tiers: first what denies, then what allows, and nothing allows by
//! itself. So a Deny that stands below an Allow of a higher tier cannot be said.

use ipnet::IpNet;
use postern_svid::TrustDomain;
use serde_json::{Map, Value, json};

use super::{EnvoyFilters, Loss, istio};
use crate::generation::Generation;
use crate::pattern::{PathPattern, Segment};
use crate::rule::{
    Account, Excluded, ExcludedTarget, HeaderMatch, HeaderTest, HostPattern, ListOf, Methods, OwnDomains,
    Peer, Rule, Target, ValuePattern,
};
use crate::verdict::{Action, Enforcement, RuleName};

const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions.filters";

/// A rule as one policy of a filter.
pub(super) struct Policy {
    pub(super) permissions: Vec<Value>,
    pub(super) principals: Vec<Value>,
}

/// What a rule is written for, and what was lost on the way.
pub(super) struct Writer<'a> {
    pub(super) domains: &'a OwnDomains,
    pub(super) action: Action,
    pub(super) tcp: bool,
    pub(super) losses: Vec<&'static str>,
}

/// The rules of a generation as filters of Envoy.
pub fn envoy(generation: &Generation) -> EnvoyFilters {
    let mut losses = Vec::new();
    tiers(generation, &mut losses);
    let http = filters(generation, false, &mut losses);
    // What is lost for opaque bytes was lost for HTTP.
    let tcp = filters(generation, true, &mut Vec::new());
    EnvoyFilters { http, tcp, losses }
}

/// A Deny is asked before every Allow, whatever their tiers.
fn tiers(generation: &Generation, losses: &mut Vec<Loss>) {
    let rules = || generation.engine.rules.iter().zip(generation.names.iter());
    let Some(first) =
        rules().filter(|(rule, _)| rule.action == Action::Allow).map(|(rule, _)| rule.tier).min()
    else {
        return;
    };
    for (_, name) in rules().filter(|(rule, _)| rule.action == Action::Deny && rule.tier > first) {
        losses.push(Loss {
            rule: RuleName::clone(name),
            what: "asks every Deny before every Allow, and an Allow of a higher tier stands above this one",
        });
    }
}

fn filters(generation: &Generation, tcp: bool, losses: &mut Vec<Loss>) -> Vec<Value> {
    let mut out = Vec::new();
    for (action, word) in [(Action::Audit, "LOG"), (Action::Deny, "DENY"), (Action::Allow, "ALLOW")] {
        let (mut enforced, mut tried) = (Map::new(), Map::new());
        let mut has_shadow = false;
        for (rule, name) in generation.engine.rules.iter().zip(generation.names.iter()) {
            if rule.action != action {
                continue;
            }
            let mut writer = Writer { domains: &generation.engine.domains, action, tcp, losses: Vec::new() };
            let written = writer.rule(rule);
            losses.extend(writer.losses.into_iter().map(|what| Loss { rule: RuleName::clone(name), what }));
            let is_shadow = rule.enforcement == Enforcement::Shadow;
            has_shadow |= is_shadow;
            let Some(Policy { permissions, principals }) = written else { continue };
            let policy = json!({"permissions": permissions, "principals": principals});
            if !is_shadow {
                enforced.insert(name.to_string(), policy.clone());
            }
            tried.insert(name.to_string(), policy);
        }
        // Without an Allow everything is denied: that filter is always there.
        if enforced.is_empty() && tried.is_empty() && action != Action::Allow {
            continue;
        }
        let kind = if tcp { "network" } else { "http" };
        let mut config = json!({
            "@type": format!("{EXTENSIONS}.{kind}.rbac.v3.RBAC"),
            "rules": {"action": word, "policies": enforced},
        });
        if has_shadow {
            config["shadow_rules"] = json!({"action": word, "policies": tried});
        }
        if tcp {
            config["stat_prefix"] = json!("postern");
        }
        out.push(json!({"name": format!("envoy.filters.{kind}.rbac"), "typed_config": config}));
    }
    out
}

impl Writer<'_> {
    /// `None`: nothing that this rule means passes such a filter.
    fn rule(&mut self, rule: &Rule) -> Option<Policy> {
        let Rule { action: _, tier: _, enforcement: _, target_ports, from, to, window, condition, istio } =
            rule;
        if let Some(clause) = istio {
            return istio::policy(self, clause);
        }
        if window.is_some() {
            self.losses.push("knows no hours of the week and no dates");
            // A rule that does not always hold never allows, and always denies.
            if !self.action.is_wide() {
                return None;
            }
        }
        if condition.is_some() {
            self.losses.push("gets no CEL from here");
            // Nor does one of which nothing is known.
            if !self.action.is_wide() {
                return None;
            }
        }
        let principals = match from {
            Some(peers) => peers.iter().map(|peer| self.peer(peer)).collect(),
            None if self.action.is_wide() => vec![any()],
            None => vec![authenticated()],
        };
        let mut permissions: Vec<Value> = match to {
            Some(targets) => targets.iter().filter_map(|target| self.target(target)).collect(),
            None => vec![self.methods(None)],
        };
        if let Some(list) = target_ports {
            let on = or("or_rules", "rules", list.iter().map(port));
            permissions = permissions.into_iter().map(|rule| all_rules(vec![on.clone(), rule])).collect();
        }
        (!permissions.is_empty()).then_some(Policy { permissions, principals })
    }

    fn peer(&mut self, peer: &Peer) -> Value {
        let Peer { unauthenticated, spiffe, accounts, namespaces, trust_domain, cidrs, jwt, not } = peer;
        let mut and = Vec::new();
        if jwt.is_some() || not.as_ref().is_some_and(|not| not.jwt.is_some()) {
            self.losses.push("verifies tokens in another filter, which is not written here");
            if !self.action.is_wide() {
                return json!({"not_id": any()});
            }
        }
        let td = trust_domain.as_ref();
        let mut ids = |all: Vec<Value>| and.push(or("or_ids", "ids", all.into_iter()));
        if let Some(list) = spiffe {
            ids(list.iter().map(|id| id_is(json!({"exact": id.as_str()}))).collect());
        }
        if let Some(list) = accounts {
            ids(self.accounts(list, td));
        }
        if let Some(list) = namespaces {
            ids(self.namespaces(list, td));
        }
        if let Some(td) = trust_domain {
            ids(vec![of_domain(td)]);
        }
        if let Some(list) = cidrs {
            ids(list.iter().map(address).collect());
        }
        if *unauthenticated {
            and.push(json!({"not_id": authenticated()}));
        } else if !self.action.is_wide() {
            and.push(authenticated());
        }
        if let Some(not) = not {
            and.push(json!({"not_id": self.excluded(not)}));
        }
        all_ids(and)
    }

    fn excluded(&self, excluded: &Excluded) -> Value {
        let Excluded { spiffe, accounts, namespaces, trust_domain, cidrs, jwt: _ } = excluded;
        let td = trust_domain.as_ref();
        let mut any: Vec<Value> = spiffe.iter().map(|id| id_is(json!({"exact": id.as_str()}))).collect();
        any.extend(self.accounts(accounts, td));
        any.extend(self.namespaces(namespaces, td));
        if let (Some(td), true, true) = (td, accounts.is_empty(), namespaces.is_empty()) {
            any.push(of_domain(td));
        }
        // A peer without an identity is never excluded.
        any.extend(cidrs.iter().map(|net| all_ids(vec![authenticated(), address(net)])));
        or("or_ids", "ids", any.into_iter())
    }

    fn domains<'s>(&'s self, named: Option<&'s TrustDomain>) -> impl Iterator<Item = &'s TrustDomain> {
        let own =
            named.is_none().then(|| std::iter::once(&self.domains.canonical).chain(&self.domains.aliases));
        named.into_iter().chain(own.into_iter().flatten())
    }

    fn accounts(&self, list: &[Account], td: Option<&TrustDomain>) -> Vec<Value> {
        let mut out = Vec::new();
        for Account { namespace, name } in list {
            let ids = self.domains(td).map(|td| format!("spiffe://{td}/ns/{namespace}/sa/{name}"));
            out.extend(ids.map(|id| id_is(json!({"exact": id}))));
        }
        out
    }

    fn namespaces(&self, list: &[Box<str>], td: Option<&TrustDomain>) -> Vec<Value> {
        let mut out = Vec::new();
        for name in list {
            let front = self.domains(td).map(|td| escaped(&format!("spiffe://{td}/ns/{name}/sa/")));
            out.extend(front.map(|front| id_is(regex(&format!("{front}[^/]+")))));
        }
        out
    }

    /// `None`: it never matches here.
    fn target(&mut self, target: &Target) -> Option<Value> {
        let Target { methods, paths, grpc: _, hosts, headers, upgrade, sni, ports, not } = target;
        let mut and = Vec::new();
        if let Some(list) = ports {
            and.push(or("or_rules", "rules", list.iter().map(port)));
        }
        if sni.is_some() || not.as_ref().is_some_and(|not| !not.sni.is_empty()) {
            self.losses.push("judges server names of TLS at its listener, not in this filter");
            if !self.action.is_wide() {
                return None;
            }
        }
        if self.tcp {
            // Unknown: an Allow does not fire, a Deny does.
            if target.asks_layer7() && !self.action.is_wide() {
                return None;
            }
            let excluded = not.as_ref().map(|not| &not.ports).filter(|ports| !ports.is_empty());
            and.extend(
                excluded.map(|list| json!({"not_rule": or("or_rules", "rules", list.iter().map(port))})),
            );
            return Some(all_rules(and));
        }
        and.push(self.methods(methods.as_ref()));
        if let Some(list) = paths {
            and.push(or("or_rules", "rules", list.iter().map(path)));
        }
        if let Some(list) = hosts {
            and.push(or("or_rules", "rules", list.iter().map(host)));
        }
        if upgrade.is_some() || not.as_ref().is_some_and(|not| not.upgrade.is_some()) {
            self.losses.push("decides about upgrades at its connection manager, not in this filter");
            if !self.action.is_wide() {
                return None;
            }
        }
        for field in headers {
            and.push(self.header(field));
        }
        if let Some(ExcludedTarget { methods, paths, hosts, upgrade: _, sni: _, ports }) = not.as_deref() {
            let mut any: Vec<Value> = methods.iter().map(|method| method_is(method.as_str())).collect();
            any.extend(paths.iter().map(path));
            any.extend(hosts.iter().map(host));
            any.extend(ports.iter().map(port));
            if !any.is_empty() {
                and.push(json!({"not_rule": or("or_rules", "rules", any.into_iter())}));
            }
        }
        Some(all_rules(and))
    }

    pub(super) fn methods(&self, methods: Option<&Methods>) -> Value {
        match methods {
            Some(Methods::Only(named)) => {
                or("or_rules", "rules", named.iter().map(|method| method_is(method.as_str())))
            }
            _ if self.action.is_wide() || self.tcp => any(),
            Some(Methods::Any) | None => unnamed(),
        }
    }

    fn header(&mut self, field: &HeaderMatch) -> Value {
        let HeaderMatch { name, test } = field;
        let present = json!({"header": {"name": name, "present_match": true}});
        let element = |patterns: &[ValuePattern]| {
            or(
                "or_rules",
                "rules",
                patterns.iter().map(|pattern| {
                    let text = match pattern {
                        ValuePattern::Exact(text) => escaped(text),
                        ValuePattern::Prefix(text) => format!("{}[^,]*", escaped(text)),
                    };
                    let matcher = regex(&format!("(.*,)?[ \\t]*{text}[ \\t]*(,.*)?"));
                    json!({"header": {"name": name, "string_match": matcher}})
                }),
            )
        };
        let wide = self.action.is_wide();
        match test {
            HeaderTest::Present => present,
            HeaderTest::Absent => json!({"not_rule": present}),
            HeaderTest::Is(patterns, ListOf::Any) => element(patterns),
            HeaderTest::Is(patterns, _) if wide => element(patterns),
            HeaderTest::Is(patterns, _) => {
                self.losses.push("matches a field of several values if one of them is right");
                element(patterns)
            }
            HeaderTest::Not(patterns) if wide => {
                self.losses.push("excludes a field of several values if one of them is excluded");
                json!({"not_rule": element(patterns)})
            }
            HeaderTest::Not(patterns) => all_rules(vec![present, json!({"not_rule": element(patterns)})]),
        }
    }
}

pub(super) fn any() -> Value {
    json!({"any": true})
}

pub(super) fn authenticated() -> Value {
    id_is(json!({"prefix": "spiffe://"}))
}

pub(super) fn id_is(matcher: Value) -> Value {
    json!({"authenticated": {"principal_name": matcher}})
}

fn of_domain(td: &TrustDomain) -> Value {
    id_is(json!({"prefix": format!("spiffe://{td}/")}))
}

pub(super) fn address(net: &IpNet) -> Value {
    json!({"direct_remote_ip": {"address_prefix": net.addr().to_string(), "prefix_len": net.prefix_len()}})
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "it maps over lists")]
pub(super) fn port(port: &u16) -> Value {
    json!({"destination_port": port})
}

fn method_is(method: &str) -> Value {
    json!({"header": {"name": ":method", "string_match": {"exact": method}}})
}

/// Every method but those that an Allow has to name.
pub(super) fn unnamed() -> Value {
    json!({"not_rule": or("or_rules", "rules", ["TRACE", "CONNECT"].into_iter().map(method_is))})
}

pub(super) fn path(pattern: &PathPattern) -> Value {
    let is = |matcher: Value| json!({"url_path": {"path": matcher}});
    match pattern {
        PathPattern::Exact(path) => is(json!({"exact": path})),
        PathPattern::Prefix(path) if path.ends_with('/') => is(json!({"prefix": path})),
        PathPattern::Prefix(path) => {
            let below = is(json!({"prefix": format!("{path}/")}));
            or("or_rules", "rules", [is(json!({"exact": path})), below].into_iter())
        }
        PathPattern::Template(template) => {
            let segment = |segment: &Segment| match segment {
                Segment::Literal(text) => format!("/{}", escaped(text)),
                Segment::One => "/[^/]+".to_owned(),
                Segment::Many => "/.*".to_owned(),
            };
            is(regex(&template.segments.iter().map(segment).collect::<String>()))
        }
        PathPattern::Methods { service, prefix } => {
            is(regex(&format!("{}{}[^/]*", escaped(service), escaped(prefix))))
        }
        PathPattern::Beginning(text) if text.is_empty() => any(),
        PathPattern::Beginning(text) => is(json!({"prefix": text})),
        PathPattern::Ending(text) => is(json!({"suffix": text})),
    }
}

/// With any port behind it, and a dot at its end: to Postern it is the same host.
fn host(pattern: &HostPattern) -> Value {
    let name = match pattern {
        HostPattern::Exact(name) if name.contains(':') => format!("\\[{}\\]", escaped(name)),
        HostPattern::Exact(name) => escaped(name),
        HostPattern::Below(domain) => format!(".+\\.{}", escaped(domain)),
    };
    json!({"header": {"name": ":authority", "string_match": regex(&format!("(?i){name}\\.?(:[0-9]+)?"))}})
}

pub(super) fn regex(text: &str) -> Value {
    json!({"safe_regex": {"regex": text}})
}

/// Text as a regular expression that matches it and nothing else.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !(c.is_ascii_alphanumeric()
            || matches!(c, '/' | '-' | '_' | ':' | ' ' | ',' | '%' | '~' | '=' | ';'))
        {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

pub(super) fn or(word: &str, list: &str, items: impl Iterator<Item = Value>) -> Value {
    let mut items: Vec<Value> = items.collect();
    match items.len() {
        1 => items.remove(0),
        // No value is right: nothing matches, and Envoy takes no empty list.
        0 if word == "or_ids" => json!({"not_id": any()}),
        0 => json!({"not_rule": any()}),
        _ => json!({word: {list: items}}),
    }
}

pub(super) fn all_rules(items: Vec<Value>) -> Value {
    all("and_rules", "rules", items)
}

pub(super) fn all_ids(items: Vec<Value>) -> Value {
    all("and_ids", "ids", items)
}

fn all(word: &str, list: &str, mut items: Vec<Value>) -> Value {
    items.retain(|item| *item != any());
    match items.len() {
        0 => any(),
        1 => items.remove(0),
        _ => json!({word: {list: items}}),
    }
}

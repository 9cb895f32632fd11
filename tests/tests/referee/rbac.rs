//! Policies as Envoy reads them: what Istio's control plane makes of an AuthorizationPolicy (its authorization builder),
//! written down anew from the drawn values. Postern's reading of documents is not used, or a mistake in it would be
//! made twice and never be seen.

use serde_json::{Value, json};

use super::policy::{Pair, Policy, Rule};

/// The mesh's own trust domain and its aliases.
pub(crate) const OWN: [&str; 2] = ["home", "alias"];
const MATCHERS: &str = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3";

/// An attribute that a TCP filter does not have.
struct HttpOnly;

/// The rules of one action, `None` if no policy has it.
pub(crate) fn rules(policies: &[Policy], action: &str, tcp: bool) -> Option<Value> {
    let of_action = || policies.iter().filter(|policy| policy.action == action);
    of_action().next()?;
    let mut out = serde_json::Map::new();
    for (n, policy) in of_action().enumerate() {
        if policy.rules.is_empty() {
            let never = json!({
                "permissions": [{"not_rule": {"any": true}}],
                "principals": [{"not_id": {"any": true}}],
            });
            out.insert(format!("p{n}"), never);
        }
        for (m, rule) in policy.rules.iter().enumerate() {
            // An ALLOW rule that asks for what the filter does not have is left out.
            if let Ok(rule) = rule_of(rule, action, tcp) {
                out.insert(format!("p{n}-{m}"), rule);
            }
        }
    }
    Some(json!({"action": action, "policies": out}))
}

fn rule_of(rule: &Rule, action: &str, tcp: bool) -> Result<Value, HttpOnly> {
    let is_permission = |pair: &&Pair| pair.key.starts_with("destination.");
    let (permissions, principals): (Vec<&Pair>, Vec<&Pair>) = rule.when.iter().partition(is_permission);
    let alternatives = |written: &[Vec<Pair>], when: &[&Pair], side: &Side| -> Result<Vec<Value>, HttpOnly> {
        let none = [Vec::new()];
        let written = if written.is_empty() { &none } else { written };
        written.iter().map(|pairs| all(pairs.iter().chain(when.iter().copied()), action, tcp, side)).collect()
    };
    Ok(json!({
        "permissions": alternatives(&rule.to, &permissions, &PERMISSION)?,
        "principals": alternatives(&rule.from, &principals, &PRINCIPAL)?,
    }))
}

/// The words of Envoy's permissions, and of its principals.
struct Side {
    and: [&'static str; 2],
    or: [&'static str; 2],
    not: &'static str,
}

const PERMISSION: Side = Side { and: ["and_rules", "rules"], or: ["or_rules", "rules"], not: "not_rule" };
const PRINCIPAL: Side = Side { and: ["and_ids", "ids"], or: ["or_ids", "ids"], not: "not_id" };

fn all<'a>(
    pairs: impl Iterator<Item = &'a Pair>,
    action: &str,
    tcp: bool,
    side: &Side,
) -> Result<Value, HttpOnly> {
    let mut and = Vec::new();
    for Pair { key, values, not } in pairs {
        for (list, negated) in [(values, false), (not, true)] {
            let mut or = Vec::new();
            for value in list {
                for value in expanded(key, value) {
                    match atom(key, &value, tcp) {
                        Ok(atom) => or.push(atom),
                        Err(HttpOnly) if action == "ALLOW" => return Err(HttpOnly),
                        // A DENY goes without it.
                        Err(HttpOnly) => {}
                    }
                }
            }
            if !or.is_empty() {
                let any = json!({side.or[0]: {side.or[1]: or}});
                and.push(if negated { json!({side.not: any}) } else { any });
            }
        }
    }
    if and.is_empty() {
        and.push(json!({"any": true}));
    }
    Ok(json!({side.and[0]: {side.and[1]: and}}))
}

/// Principals of the own trust domain hold in its aliases.
fn expanded(key: &str, value: &str) -> Vec<String> {
    let parts: Vec<&str> = value.split('/').collect();
    let own = parts.len() == 5 && (OWN.contains(&parts[0]) || parts[0] == "cluster.local");
    if !own || !["principals", "source.principal"].contains(&key) {
        return vec![value.to_owned()];
    }
    OWN.iter().map(|domain| format!("{domain}/{}", parts[1..].join("/"))).collect()
}

fn atom(key: &str, value: &str, tcp: bool) -> Result<Value, HttpOnly> {
    let http = |value: Value| if tcp { Err(HttpOnly) } else { Ok(value) };
    match key {
        "ports" | "destination.port" => {
            Ok(json!({"destination_port": value.parse::<u16>().expect("ports are numbers")}))
        }
        "ipBlocks" | "source.ip" => {
            let (address, length) = value.split_once('/').unwrap_or((value, "32"));
            let length: u8 = length.parse().expect("lengths are numbers");
            Ok(json!({"direct_remote_ip": {"address_prefix": address, "prefix_len": length}}))
        }
        "principals" | "source.principal" => {
            let name = match (value, value.strip_prefix('*')) {
                ("*", _) => regex(".+"),
                (_, Some(suffix)) => regex(&format!("spiffe://.*{suffix}")),
                (_, None) => text(&format!("spiffe://{value}")),
            };
            Ok(json!({"authenticated": {"principal_name": name}}))
        }
        "namespaces" | "source.namespace" => {
            let name = regex(&format!(".*/ns/{}/.*", value.replace('*', ".*")));
            Ok(json!({"authenticated": {"principal_name": name}}))
        }
        "serviceAccounts" => {
            let (namespace, account) = value.split_once('/').unwrap_or(("shop", value));
            let name = regex(&format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?"));
            Ok(json!({"authenticated": {"principal_name": name}}))
        }
        "methods" => http(json!({"header": header(":method", value, false)})),
        "hosts" => http(json!({"header": header(":authority", value, true)})),
        "paths" if value.contains("{*}") || value.contains("{**}") => {
            let template = value.replace("{**}", "**").replace("{*}", "*");
            http(json!({"uri_template": {
                "name": "uri-template",
                "typed_config": {"@type": format!("{MATCHERS}.UriTemplateMatchConfig"), "path_template": template},
            }}))
        }
        "paths" => http(json!({"url_path": {"path": text(value)}})),
        _ => {
            let name = key.strip_prefix("request.headers[").and_then(|name| name.strip_suffix(']'));
            http(json!({"header": header(name.expect("no other key is drawn"), value, false)}))
        }
    }
}

fn header(name: &str, value: &str, ignore_case: bool) -> Value {
    if value == "*" {
        return json!({"name": name, "present_match": true});
    }
    let mut matcher = text(value);
    if ignore_case {
        matcher["ignore_case"] = json!(true);
    }
    json!({"name": name, "string_match": matcher})
}

fn text(value: &str) -> Value {
    match (value, value.strip_prefix('*'), value.strip_suffix('*')) {
        ("*", _, _) => regex(".+"),
        (_, Some(suffix), _) => json!({"suffix": suffix}),
        (_, None, Some(prefix)) => json!({"prefix": prefix}),
        _ => json!({"exact": value}),
    }
}

fn regex(text: &str) -> Value {
    json!({"safe_regex": {"regex": text}})
}

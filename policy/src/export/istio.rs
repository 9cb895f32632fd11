//! Rules of Istio's kind in Envoy's words.

use serde_json::{Value, json};

use super::envoy::{
    Policy, Writer, address, all_ids, all_rules, any, authenticated, escaped, id_is, or, path, port, regex,
    unnamed,
};
use crate::istio::{Clause, Field, IdentityPattern, Test, TextPattern, What, Who};

/// `None`: nothing that this rule means passes such a filter.
pub(super) fn policy(writer: &mut Writer<'_>, clause: &Clause) -> Option<Policy> {
    let Clause { from, to, fields } = clause;
    let wide = writer.action.is_wide();
    if writer.tcp && !wide && clause.asks_layer7() {
        return None;
    }
    if to.iter().any(|what| !what.sni.is_empty()) {
        writer.losses.push("judges server names of TLS at its listener, not in this filter");
        if !wide {
            return None;
        }
    }
    if clause.asks_tokens() {
        writer.losses.push("verifies tokens in another filter, which is not written here");
        // A Deny fires on what it cannot know, an Allow does not.
        if !wide {
            return None;
        }
    }
    let mut both = Vec::new();
    if !writer.tcp {
        for Field { name, test } in fields {
            if !wide || !test.not.is_empty() {
                writer.losses.push("matches a field of several lines if one of them is right");
            }
            both.push(header(name, test, wide));
        }
    }
    let principals = from.iter().map(|who| {
        let mut and = who_is(who);
        if !wide {
            and.push(authenticated());
        }
        and.extend(both.iter().cloned());
        all_ids(and)
    });
    let principals = principals.collect();
    let permissions = to.iter().map(|what| operation(what, wide, writer.tcp)).collect();
    Some(Policy { permissions, principals })
}

fn who_is(who: &Who) -> Vec<Value> {
    let Who { identities, addresses, tokens: _ } = who;
    let mut and = Vec::new();
    for test in identities {
        ids(&mut and, test, identity);
    }
    for test in addresses {
        ids(&mut and, test, address);
    }
    and
}

fn ids<T>(and: &mut Vec<Value>, test: &Test<T>, atom: impl Fn(&T) -> Value) {
    let Test { values, not } = test;
    if !values.is_empty() {
        and.push(or("or_ids", "ids", values.iter().map(&atom)));
    }
    if !not.is_empty() {
        and.push(json!({"not_id": or("or_ids", "ids", not.iter().map(&atom))}));
    }
}

fn identity(pattern: &IdentityPattern) -> Value {
    id_is(match pattern {
        IdentityPattern::Id(id) => json!({"exact": id.as_str()}),
        IdentityPattern::Namespace(name) => regex(&format!(".*/ns/{}/.*", escaped(name))),
        IdentityPattern::Account { namespace, name } => {
            regex(&format!("spiffe://.+/ns/{}/(.+/|)sa/{}(/.+)?", escaped(namespace), escaped(name)))
        }
        IdentityPattern::Glob(glob) => {
            let parts: Vec<String> = glob.parts().map(escaped).collect();
            regex(&parts.join(".*"))
        }
    })
}

fn operation(what: &What, wide: bool, tcp: bool) -> Value {
    let What { hosts, methods, paths, ports, sni: _ } = what;
    let mut and = Vec::new();
    for test in ports {
        rules(&mut and, test, port, port);
    }
    if tcp {
        return all_rules(and);
    }
    let method = |pattern: &TextPattern| text(":method", pattern, false);
    rules(&mut and, methods, method, method);
    let named = |pattern: &TextPattern| match pattern {
        TextPattern::Exact(name) => matches!(&**name, "TRACE" | "CONNECT"),
        _ => false,
    };
    if !wide {
        // Those that are named, and every other method that the patterns mean.
        let named = methods.values.iter().filter(|pattern| named(pattern)).map(method);
        and.push(or("or_rules", "rules", named.chain([unnamed()])));
    }
    rules(&mut and, paths, path, path);
    let whole = |pattern: &TextPattern| text(":authority", pattern, true);
    let either = |pattern: &TextPattern| without_port(pattern);
    if wide {
        rules(&mut and, hosts, either, whole)
    } else {
        rules(&mut and, hosts, whole, either)
    }
    all_rules(and)
}

fn rules<T>(
    and: &mut Vec<Value>,
    test: &Test<T>,
    is: impl Fn(&T) -> Value,
    is_excluded: impl Fn(&T) -> Value,
) {
    let Test { values, not } = test;
    if !values.is_empty() {
        and.push(or("or_rules", "rules", values.iter().map(is)));
    }
    if !not.is_empty() {
        and.push(json!({"not_rule": or("or_rules", "rules", not.iter().map(is_excluded))}));
    }
}

fn text(name: &str, pattern: &TextPattern, ignore_case: bool) -> Value {
    let matcher = match pattern {
        TextPattern::Present => return json!({"header": {"name": name, "present_match": true}}),
        TextPattern::Exact(text) => json!({"exact": text, "ignore_case": ignore_case}),
        TextPattern::Prefix(text) => json!({"prefix": text, "ignore_case": ignore_case}),
        TextPattern::Suffix(text) => json!({"suffix": text, "ignore_case": ignore_case}),
    };
    json!({"header": {"name": name, "string_match": matcher}})
}

/// A host with the port that came with it, or without.
fn without_port(pattern: &TextPattern) -> Value {
    let name = match pattern {
        TextPattern::Present => return any(),
        TextPattern::Exact(text) => escaped(text),
        TextPattern::Prefix(text) => format!("{}.*", escaped(text)),
        TextPattern::Suffix(text) => format!(".*{}", escaped(text)),
    };
    json!({"header": {"name": ":authority", "string_match": regex(&format!("(?i){name}(:[0-9]+)?"))}})
}

/// As a principal: it belongs to every alternative. A rule that closes something looks at each element of a list.
fn header(name: &str, test: &Test<TextPattern>, wide: bool) -> Value {
    let whole = |pattern: &TextPattern| text(name, pattern, false);
    let element = |pattern: &TextPattern| {
        let text = match pattern {
            TextPattern::Present => return whole(pattern),
            TextPattern::Exact(text) => escaped(text),
            TextPattern::Prefix(text) => format!("{}.*", escaped(text)),
            TextPattern::Suffix(text) => format!(".*{}", escaped(text)),
        };
        let matcher = regex(&format!("(.*,)?[ \\t]*{text}[ \\t]*(,.*)?"));
        json!({"header": {"name": name, "string_match": matcher}})
    };
    let Test { values, not } = test;
    let mut and = Vec::new();
    if !values.is_empty() {
        let is: Vec<Value> =
            values.iter().map(|pattern| if wide { element(pattern) } else { whole(pattern) }).collect();
        and.push(or("or_ids", "ids", is.into_iter()));
    }
    if !not.is_empty() {
        let is: Vec<Value> =
            not.iter().map(|pattern| if wide { whole(pattern) } else { element(pattern) }).collect();
        and.push(json!({"not_id": or("or_ids", "ids", is.into_iter())}));
    }
    all_ids(and)
}

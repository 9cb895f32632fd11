//! Whatever change is proposed loads, and makes the call allowed.

use std::collections::BTreeMap;

use postern_svid::{SpiffeId, TrustDomain};
use proptest::prelude::*;

use super::*;
use crate::diagnostic::SourceFile;
use crate::fields::{HeaderFields, HeaderLines};
use crate::load;
use crate::norm::{CanonHost, CanonMethod, CanonPath, PathOptions};
use crate::tokens::Tokens;
use crate::upgrade::Upgrade;
use crate::verdict::{Scope, Workload};

/// Fields of an alternative, each with its items as they are written.
type Written = BTreeMap<String, Vec<String>>;

/// A rule as it is written.
#[derive(Clone, Debug, Default)]
struct Text {
    target_ports: Option<Vec<String>>,
    from: Option<Vec<Written>>,
    to: Option<Vec<Written>>,
    /// Alternatives of a copy of it.
    copy: Option<(Option<String>, Option<String>)>,
    /// Alternatives that were added.
    more: BTreeMap<&'static str, Vec<String>>,
}

impl Text {
    fn document(&self) -> String {
        let flow = |alternative: &Written| {
            let fields: Vec<String> = alternative
                .iter()
                .map(|(field, items)| match field.as_str() {
                    "unauthenticated" | "not" => format!("{field}: {}", items[0]),
                    _ => format!("{field}: [{}]", items.join(", ")),
                })
                .collect();
            format!("{{{}}}", fields.join(", "))
        };
        let list = |name: &'static str, alternatives: &Option<Vec<Written>>| {
            let Some(alternatives) = alternatives else { return String::new() };
            let more = self.more.get(name).into_iter().flatten().cloned();
            let all: Vec<String> = alternatives.iter().map(flow).chain(more).collect();
            format!("    {name}: [{}]\n", all.join(", "))
        };
        let (from, to) = (list("from", &self.from), list("to", &self.to));
        let mut text = "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  action: Allow\n".to_owned();
        if let Some(ports) = &self.target_ports {
            text.push_str(&format!(
                "  target: {{selector: {{app: orders}}, ports: [{}]}}\n",
                ports.join(", ")
            ));
        }
        text.push_str(&format!("  rules:\n  - name: r\n{from}{to}"));
        if let Some((copied_from, copied_to)) = &self.copy {
            let from = copied_from.as_ref().map_or(from, |text| format!("    from: [{text}]\n"));
            let to = copied_to.as_ref().map_or(to, |text| format!("    to: [{text}]\n"));
            text.push_str(&format!("  - name: s\n{from}{to}"));
        }
        text
    }

    /// Does what the advice says, to the letter.
    fn follow(&mut self, advice: &str) {
        for change in advice.split("; and ") {
            let change = change.strip_prefix("call through a sidecar, or ").unwrap_or(change);
            let ticked: Vec<&str> = change.split('`').skip(1).step_by(2).collect();
            if change.starts_with("add an alternative ") {
                let name = if ticked[1] == "from" { "from" } else { "to" };
                self.more.entry(name).or_default().push(ticked[0].to_owned());
            } else if change.starts_with("add a copy of it ") {
                let of = |name: &str| {
                    let found = ticked.iter().find_map(|text| text.strip_prefix(name)?.strip_suffix(']'));
                    found.map(str::to_owned)
                };
                self.copy = Some((of("from: ["), of("to: [")));
            } else if let Some(port) = change.strip_suffix(" to the ports of `target`") {
                let port = port.strip_prefix("add ").expect("a port is added").to_owned();
                self.target_ports.as_mut().expect("there are some").push(port);
            } else {
                let item = change.strip_prefix("add ").and_then(|rest| rest.split(" to `").next());
                let item = item.unwrap_or_else(|| panic!("nothing that can be followed: {change}"));
                let lists = self.from.iter_mut().chain(self.to.iter_mut()).flatten();
                let mut has_field = false;
                // Nothing is missing where everything is meant.
                let lists = lists.filter_map(|alternative| alternative.get_mut(ticked[0]));
                for items in lists.filter(|items| !items.contains(&"\"*\"".to_owned())) {
                    items.push(item.to_owned());
                    has_field = true;
                }
                assert!(has_field, "no field {}: {change}", ticked[0]);
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Asked {
    id: Option<&'static str>,
    address: &'static str,
    port: u16,
    method: &'static str,
    path: &'static str,
    host: &'static str,
    upgrade: Option<&'static str>,
    /// Opaque bytes instead: of which nothing is read, or a handshake.
    opaque: Option<Option<&'static str>>,
}

fn load_text(text: &str) -> Result<Generation, String> {
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").unwrap(),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::from([("app".into(), "orders".into())]),
        }),
    };
    let file = SourceFile { name: "a.yaml".into(), text: text.into() };
    load(&[file], &scope, 1).map_err(|errors| errors.to_string())
}

fn explained(generation: &Generation, asked: &Asked) -> Option<Explanation> {
    let id = asked.id.map(|id| SpiffeId::parse(id).unwrap());
    let source = Source { identity: id.as_ref(), address: asked.address.parse().unwrap() };
    let host = |text: &str| CanonHost::parse(text).unwrap();
    if let Some(sni) = asked.opaque {
        let sni = sni.map(host);
        let operation =
            if asked.method == "GET" { Operation::Tcp } else { Operation::Tls { sni: sni.as_ref() } };
        return Some(generation.explain(source, asked.port, operation));
    }
    let method = CanonMethod::parse(asked.method).unwrap();
    let path = CanonPath::parse_for(&method, asked.path, &PathOptions::default()).ok()?;
    let upgrade = asked.upgrade.map(|name| Upgrade::parse(name).unwrap());
    let (host, fields) = (host(asked.host), HeaderFields::new());
    let operation = Operation::Http {
        method: &method,
        path: &path,
        host: Some(&host),
        headers: Some(&fields as &dyn HeaderLines),
        upgrade: upgrade.as_ref(),
        tokens: Tokens::Absent,
    };
    Some(generation.explain(source, asked.port, operation))
}

fn written(fields: &[(&str, &str)]) -> Written {
    fields.iter().map(|(field, item)| ((*field).to_owned(), vec![(*item).to_owned()])).collect()
}

fn rules() -> impl Strategy<Value = Text> {
    let from = prop::sample::select(vec![
        written(&[("serviceAccounts", "x")]),
        written(&[("namespaces", "x")]),
        written(&[("cidrs", "10.0.0.0/8")]),
        written(&[("cidrs", "\"2001:db8::/32\""), ("serviceAccounts", "shop/web")]),
        written(&[("spiffe", "spiffe://td/ns/shop/sa/x")]),
        written(&[("unauthenticated", "true")]),
        written(&[("unauthenticated", "true"), ("cidrs", "10.0.0.0/8")]),
        written(&[("not", "{namespaces: [shop]}")]),
    ]);
    let to = prop::sample::select(vec![
        written(&[("methods", "POST")]),
        written(&[("methods", "\"*\"")]),
        written(&[("paths", "/x")]),
        written(&[("pathPrefix", "/x")]),
        written(&[("methods", "POST"), ("paths", "/x")]),
        written(&[("methods", "POST"), ("paths", "/x"), ("ports", "1"), ("hosts", "h.x")]),
        written(&[("ports", "1")]),
        written(&[("hosts", "h.x")]),
        written(&[("headers", "{name: x-a, present: true}")]),
        written(&[("grpc", "a.B/*")]),
        written(&[("upgrade", "websocket")]),
        written(&[("sni", "h.x")]),
        written(&[("not", "{methods: [GET], paths: [/a]}")]),
    ]);
    let lists = (
        prop::option::of(Just(vec!["1".to_owned()])),
        prop::option::of(prop::collection::vec(from, 1..3)),
        prop::option::of(prop::collection::vec(to, 1..3)),
    );
    lists.prop_map(|(target_ports, from, to)| Text { target_ports, from, to, ..Text::default() })
}

fn questions() -> impl Strategy<Value = Asked> {
    let id = vec![
        None,
        Some("spiffe://td/ns/shop/sa/web"),
        Some("spiffe://td/ns/null/sa/true"),
        Some("spiffe://td/other"),
        Some("spiffe://else/ns/shop/sa/web"),
    ];
    let address = vec!["127.0.0.9", "10.1.1.1", "::1", "fd00::7", "::ffff:10.1.2.3"];
    let method = vec![
        "GET", "purge", "Purge", "*", "NULL", "null", "~", "1", "1e3", "0x1F", "Track", "TRACE", "CONNECT",
        "PURGE", "M-SEARCH", "no", "'x", "&a", "!t", "%a", "#a", "|", "-", "OPTIONS", "+", ".",
    ];
    let path = vec![
        "/", "/a", "/a,b", "/a:b", "/a:", "/a;x", "/a*", "*", "/a'b", "/a&b", "/{x}", "/a@b", "/@x", "/!",
        "/a=%22", "/%5B1%5D", "/a/..;x", "/x", "/a(b)", "/~", "/a%2561", "/a?b#c",
    ];
    let host = vec!["h.x", "null", "true", "10.0.0.1", "[::1]:80", "on.x:80"];
    let upgrade =
        vec![None, Some("websocket"), Some("tcp"), Some("*"), Some("~"), Some("null"), Some("spdy/3.1")];
    let opaque = vec![None, None, None, Some(None), Some(Some("h.y")), Some(Some("null"))];
    let select = prop::sample::select::<&'static str>;
    (
        prop::sample::select(id),
        select(address),
        prop::sample::select(vec![1_u16, 8080]),
        select(method),
        select(path),
        select(host),
        prop::sample::select(upgrade),
        prop::sample::select(opaque),
    )
        .prop_map(|(id, address, port, method, path, host, upgrade, opaque)| Asked {
            id,
            address,
            port,
            method,
            path,
            host,
            upgrade,
            opaque,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_proposed_loads_and_allows_the_call(rule in rules(), asked in questions()) {
        let before = rule.document();
        let Ok(generation) = load_text(&before) else { return Ok(()) };
        let Some(explained) = explained(&generation, &asked) else { return Ok(()) };
        let Some(miss) = explained.nearest else { return Ok(()) };
        let (_, advice) = miss.change.split_once("): ").expect("the place of the rule stands in front");
        let mut after = rule;
        after.follow(advice);
        let after = after.document();
        match load_text(&after) {
            Err(errors) => prop_assert!(false, "{}\n{}\n{}", advice, after, errors),
            Ok(generation) => {
                let again = self::explained(&generation, &asked).expect("it was asked before");
                prop_assert!(again.verdict.is_allowed(), "{}\n{}\n{}", advice, after, again);
            }
        }
    }
}

/// The questions above meet the rules: advice about nothing would prove nothing.
#[test]
fn most_of_it_is_advice() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut loaded, mut advised) = (0, 0);
    for _ in 0..500 {
        let rule = rules().new_tree(&mut runner).unwrap().current();
        let asked = questions().new_tree(&mut runner).unwrap().current();
        let Ok(generation) = load_text(&rule.document()) else { continue };
        loaded += 1;
        advised += usize::from(explained(&generation, &asked).is_some_and(|one| one.nearest.is_some()));
    }
    assert!(loaded > 400 && advised > 200, "{loaded} loaded, {advised} advised");
}

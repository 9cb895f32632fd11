//! The tables in `vectors/`: how requests are read, and what rules say to them. Rules are loaded as documents, and each
//! question is put to the engine and to its reference. (`vectors/requests.yaml` is for the sidecar's tests.)

use std::collections::BTreeMap;

use postern_policy::norm::{CanonHost, CanonMethod, CanonPath, EscapedSlashes, PathOptions};
use postern_policy::{
    Generation, HeaderFields, HeaderLines, Operation, Scope, Source, SourceFile, Tokens, Workload, load, yaml,
};
use postern_svid::{SpiffeId, TrustDomain};
use rows::*;
use serde::de::DeserializeOwned;

#[path = "vectors/rows.rs"]
mod rows;

/// Fewer rows than this, and somebody has cut a table.
const ROWS: usize = 40;

const NORM: &str = include_str!("vectors/norm.yaml");
const HOSTS: &str = include_str!("vectors/hosts.yaml");
const HEADERS: &str = include_str!("vectors/headers.yaml");
const METHODS: &str = include_str!("vectors/methods.yaml");
const ADDRESSES: &str = include_str!("vectors/addresses.yaml");

fn parsed<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    yaml::parse(&SourceFile { name: "vectors.yaml".into(), text: text.into() })
        .map_err(|error| error.to_string())
}

fn table<T: DeserializeOwned>(text: &str) -> T {
    parsed(text).unwrap_or_else(|error| panic!("{error}"))
}

/// A policy with one rule, beside MeshDefaults. Beside a Deny everything is allowed, so that the Deny shows.
fn generation(action: &str, rule: &str, slashes: &str) -> Result<Generation, String> {
    let document = |kind: &str, name: &str, namespace: &str, spec: &str| {
        format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let (comma, from) =
        (if rule.is_empty() { "" } else { ", " }, "from: [{namespaces: [shop]}, {unauthenticated: true}]");
    let rest = match action {
        // TRACE and CONNECT are allowed by name only.
        "Deny" => format!(
            "{{tier: Baseline, action: Allow, rules: [{{name: all, {from}}}, {{name: named, {from}, to: [{{methods: [TRACE, CONNECT]}}]}}]}}"
        ),
        _ => "{tier: Baseline, action: Audit, rules: [{name: all}]}".to_owned(),
    };
    loaded(&[
        document(
            "AccessPolicy",
            "p",
            "shop",
            &format!("{{action: {action}, rules: [{{name: r{comma}{rule}}}]}}"),
        ),
        document("AccessPolicy", "open", "shop", &rest),
        document("MeshDefaults", "d", "root", &format!("{{http: {{escapedSlashes: {slashes}}}}}")),
    ])
}

fn loaded(documents: &[String]) -> Result<Generation, String> {
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    };
    load(&[SourceFile { name: "p.yaml".into(), text: documents.concat().into_bytes() }], &scope, 1)
        .map_err(|errors| errors.to_string())
}

/// A question; what a row does not speak of is as plain as can be.
struct Asked {
    identity: Option<&'static str>,
    address: String,
    method: String,
    path: String,
    host: Option<String>,
    /// `None`: not known.
    fields: Option<HeaderFields>,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            identity: Some("spiffe://td/ns/shop/sa/web"),
            address: "10.0.0.1".into(),
            method: "GET".into(),
            path: "/".into(),
            host: None,
            fields: Some(HeaderFields::new()),
        }
    }
}

impl Asked {
    /// The answer of the engine, which is its reference's.
    fn is_allowed(&self, generation: &Generation) -> bool {
        let id = self.identity.map(|id| SpiffeId::parse(id).expect("a literal"));
        let address = self.address.parse().unwrap_or_else(|_| panic!("{}", self.address));
        let source = Source { identity: id.as_ref(), address };
        let method =
            CanonMethod::parse(&self.method).unwrap_or_else(|error| panic!("{}: {error}", self.method));
        let path = CanonPath::parse_for(&method, &self.path, &generation.defaults().path);
        let path = path.unwrap_or_else(|error| panic!("{}: {error}", self.path));
        let host = self.host.as_ref();
        let host = host.map(|host| CanonHost::parse(host).unwrap_or_else(|error| panic!("{host}: {error}")));
        let operation = Operation::Http {
            method: &method,
            path: &path,
            host: host.as_ref(),
            headers: self.fields.as_ref().map(|fields| fields as &dyn HeaderLines),
            upgrade: None,
            tokens: Tokens::Absent,
        };
        let verdict = generation.decide(&generation.connection(source), 8080, operation);
        assert_eq!(verdict, generation.decide_by_reference(source, 8080, operation));
        verdict.is_allowed()
    }

    /// Holds a row against what an Allow and a Deny with `rule` say, or against why they are refused.
    fn check(&self, row: &str, rule: &str, allow: Option<bool>, deny: Option<bool>, error: Option<&str>) {
        if let Some(error) = error {
            assert!(allow.is_none() && deny.is_none(), "{row}: what is refused matches nothing");
            let said = generation("Allow", rule, "Reject").err().unwrap_or_else(|| panic!("{row}: it loads"));
            assert!(said.contains(error) && said.contains("p.yaml:"), "{row}: {said}");
            assert!(said.contains("help:"), "{row}: no way out is shown: {said}");
            return;
        }
        let allow = allow.unwrap_or_else(|| panic!("{row}: what does an Allow say?"));
        let load = |action| generation(action, rule, "Reject").unwrap_or_else(|said| panic!("{row}: {said}"));
        assert_eq!(self.is_allowed(&load("Allow")), allow, "Allow: {row}");
        match deny {
            Some(deny) => assert_eq!(!self.is_allowed(&load("Deny")), deny, "Deny: {row}"),
            None => assert!(generation("Deny", rule, "Reject").is_err(), "{row}: what does a Deny say?"),
        }
    }
}

fn fields<'a>(lines: impl IntoIterator<Item = (&'a str, &'a String)>) -> HeaderFields {
    let mut fields = HeaderFields::new();
    for (name, line) in lines {
        fields.push(name, line).expect("a field that can be sent");
    }
    fields
}

#[test]
fn paths() {
    let rows = table::<Paths>(NORM).paths;
    assert!(rows.len() > 2 * ROWS);
    for PathRow { raw, path, query, views, error, slashes, method, _why } in rows {
        let slashes = slashes.as_deref().unwrap_or("Reject");
        let method = method.as_deref().unwrap_or("GET");
        let escaped_slashes = EscapedSlashes::parse(slashes).unwrap_or_else(|| panic!("{raw}: {slashes}"));
        let options = PathOptions { escaped_slashes, ..PathOptions::default() };
        let parsed = CanonPath::parse_for(&CanonMethod::parse(method).expect("a method"), &raw, &options);
        let (Ok(got), Some(path), None) = (&parsed, &path, &error) else {
            assert_eq!(parsed.as_ref().err().map(|error| error.label()), error.as_deref(), "{raw}");
            assert!(path.is_none() && query.is_none() && views.is_empty(), "{raw}: it is refused");
            continue;
        };
        assert_eq!(got.path(), path, "{raw}");
        assert_eq!(got.query(), query.as_deref(), "{raw}");
        assert_eq!(got.views().skip(1).collect::<Vec<_>>(), views, "{raw}");
        let whole = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
        assert_eq!((got.path_and_query(), got.is_changed()), (whole.as_str(), whole != raw), "{raw}");
        // Rules speak of canonical paths that begin with a slash, and a star stands in none.
        if path.contains('*') {
            continue;
        }
        // A Deny of any reading denies, and an Allow needs all of them.
        let of = |paths: &[&String]| {
            format!(
                "to: [{{paths: [{}]}}]",
                paths.iter().map(|path| format!("'{path}'")).collect::<Vec<_>>().join(", ")
            )
        };
        let all: Vec<&String> = [path].into_iter().chain(&views).collect();
        let asked = Asked { path: raw.clone(), ..Asked::default() };
        let is_allowed = |action, paths: &[&String]| {
            asked.is_allowed(
                &generation(action, &of(paths), slashes).unwrap_or_else(|said| panic!("{raw}: {said}")),
            )
        };
        assert!(is_allowed("Allow", &all), "{raw}");
        for (n, view) in all.iter().enumerate() {
            assert!(!is_allowed("Deny", &[view]), "{raw} {view}");
            let others: Vec<&String> =
                all.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, view)| *view).collect();
            assert!(others.is_empty() || !is_allowed("Allow", &others), "{raw} but for {view}");
        }
    }
}

#[test]
fn hosts() {
    let Hosts { hosts, rules } = table(HOSTS);
    assert!(hosts.len() >= ROWS && rules.len() >= ROWS);
    for HostRow { raw, canonical, name, error, _why } in hosts {
        let host = CanonHost::parse(&raw);
        assert_eq!(host.as_ref().err().map(|error| error.label()), error.as_deref(), "{raw}");
        assert_eq!(host.as_ref().ok().map(ToString::to_string), canonical, "{raw}");
        assert_eq!(host.as_ref().ok().map(CanonHost::name), name.as_deref(), "{raw}");
    }
    for HostRule { rule, host, allow, deny, error, _why } in rules {
        let row = format!("{rule} of {host:?}");
        let asked = Asked { host, ..Asked::default() };
        asked.check(&row, &format!("to: [{{{rule}}}]"), allow, deny, error.as_deref());
    }
}

#[test]
fn headers() {
    let Headers { rules, names, istio } = table(HEADERS);
    assert!(rules.len() >= ROWS);
    let of = |lines: &Option<Vec<String>>| match lines {
        Some(lines) => fields(lines.iter().map(|line| ("x-role", line))),
        // As of a request that lives on, of which other fields were kept.
        None => HeaderFields::keep(&HeaderFields::new(), &[]),
    };
    for HeaderRow { test, lines, allow, deny, error, _why } in rules {
        let row = format!("{test} of {lines:?}");
        let asked = Asked { fields: Some(of(&lines)), ..Asked::default() };
        let rule = format!("to: [{{headers: [{{name: x-role, {test}}}]}}]");
        asked.check(&row, &rule, allow, deny, error.as_deref());
        if lines.is_none() && error.is_none() {
            // Nothing is known of any field.
            Asked { fields: None, ..Asked::default() }.check(&row, &rule, allow, deny, None);
        }
    }
    for NameRow { name, error } in names {
        let rule = format!("to: [{{headers: [{{name: '{name}', present: true}}]}}]");
        let matched = error.is_none().then_some(false);
        Asked::default().check(&name, &rule, matched, matched, error.as_deref());
    }
    for IstioRow { when, lines, allow, deny, _why } in istio {
        let policy = |name: &str, action: &str, rules: &str| {
            format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{action: {action}, rules: [{rules}]}}\n"
            )
        };
        let rule = format!("{{when: [{{key: \"request.headers[x-role]\", {when}}}]}}");
        let asked = Asked { fields: Some(of(&lines)), ..Asked::default() };
        let is_allowed = |documents: &[String]| {
            asked.is_allowed(&loaded(documents).unwrap_or_else(|said| panic!("{when}: {said}")))
        };
        assert_eq!(is_allowed(&[policy("p", "ALLOW", &rule)]), allow, "ALLOW {when} of {lines:?}");
        let denied = !is_allowed(&[policy("p", "DENY", &rule), policy("open", "ALLOW", "{}")]);
        assert_eq!(denied, deny, "DENY {when} of {lines:?}");
    }
}

#[test]
fn methods() {
    let Methods { methods, rules } = table(METHODS);
    assert!(methods.len() + rules.len() >= 2 * ROWS && rules.len() >= ROWS);
    for MethodRow { raw, error, _why } in methods {
        let method = CanonMethod::parse(&raw);
        assert_eq!(method.as_ref().err().map(|error| error.label()), error.as_deref(), "{raw:?}");
        assert!(method.is_err() || method.is_ok_and(|method| method.as_str() == raw), "{raw:?}");
    }
    for MethodRule { rule, method, fields: sent, allow, deny, error, _why } in rules {
        let row = format!("{rule} of {method:?} {sent:?}");
        let sent = fields(sent.iter().map(|(name, line)| (name.as_str(), line)));
        let asked = Asked { fields: Some(sent), path: "/shop.Orders/Get".into(), ..Asked::default() };
        let asked = Asked { method: method.unwrap_or_else(|| "GET".into()), ..asked };
        let rule = if rule.is_empty() { rule } else { format!("to: [{{{rule}}}]") };
        asked.check(&row, &rule, allow, deny, error.as_deref());
    }
}

#[test]
fn addresses() {
    let rules = table::<Addresses>(ADDRESSES).rules;
    assert!(rules.len() >= ROWS);
    for AddressRow { from, source, anonymous, allow, deny, error, _why } in rules {
        let row = format!("{from} of {source:?}");
        let asked = Asked { address: source.unwrap_or_else(|| "10.0.0.1".into()), ..Asked::default() };
        let asked = Asked { identity: asked.identity.filter(|_| !anonymous), ..asked };
        asked.check(&row, &format!("from: [{{{from}}}]"), allow, deny, error.as_deref());
    }
}

/// A column that nobody reads is a row that proves less than it says.
#[test]
fn a_table_has_no_other_columns() {
    fn refuses<T: DeserializeOwned>(text: &str) {
        assert!(parsed::<T>(text).is_ok());
        let rows: Vec<usize> = text.match_indices("\n- {").map(|(at, found)| at + found.len()).collect();
        // One row of each of its lists, and a list of another name.
        for at in [rows[0], rows[rows.len() / 2], rows[rows.len() - 1]] {
            let (before, after) = text.split_at(at);
            let said = parsed::<T>(&format!("{before}whit: 1, {after}")).err().expect("an unknown column");
            assert!(said.contains("whit"), "{said}");
        }
        assert!(parsed::<T>(&format!("{text}more: []\n")).is_err());
    }
    refuses::<Paths>(NORM);
    refuses::<Hosts>(HOSTS);
    refuses::<Headers>(HEADERS);
    refuses::<Methods>(METHODS);
    refuses::<Addresses>(ADDRESSES);
}

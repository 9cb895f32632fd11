//! `vectors/requests.yaml`, as far as it is about decisions. Which names of a host agree is for the sidecar to say.

use std::collections::BTreeMap;

use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{
    Generation, HeaderFields, HeaderLines, Operation, Scope, Source, SourceFile, Tokens, Workload, load, yaml,
};
use postern_svid::{SpiffeId, TrustDomain};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Vectors {
    hosts: Vec<Host>,
    #[serde(rename = "authorities")]
    _authorities: serde::de::IgnoredAny,
    addresses: Vec<Address>,
    headers: Vec<Header>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    raw: String,
    canonical: Option<String>,
    name: Option<String>,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Address {
    source: String,
    range: String,
    holds: Option<bool>,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    lines: Vec<String>,
    test: String,
    allow: bool,
    deny: bool,
}

fn vectors() -> Vectors {
    let text = include_bytes!("vectors/requests.yaml").to_vec();
    yaml::parse(&SourceFile { name: "requests.yaml".into(), text }).expect("the vectors are YAML")
}

fn generation(action: &str, rule: &str) -> Result<Generation, String> {
    let head = "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\n";
    let text = format!(
        "{head}metadata: {{name: p, namespace: shop}}\nspec: {{action: {action}, rules: [{{name: r, {rule}}}]}}\n---\n{head}\
         metadata: {{name: open, namespace: shop}}\nspec: {{tier: Baseline, action: {}, rules: [{{name: all}}]}}\n",
        // Beside a Deny everything is allowed, so that the Deny shows; beside an Allow this changes nothing.
        if action == "Deny" { "Allow" } else { "Audit" },
    );
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    };
    load(&[SourceFile { name: "p.yaml".into(), text: text.into_bytes() }], &scope, 1)
        .map_err(|errors| errors.to_string())
}

fn is_allowed(generation: &Generation, address: &str, fields: &HeaderFields) -> bool {
    let id = SpiffeId::parse("spiffe://td/ns/shop/sa/web").expect("a literal");
    let source = Source { identity: Some(&id), address: address.parse().expect("an address") };
    let method = CanonMethod::get();
    let path = CanonPath::parse("/", &generation.defaults().path).expect("a literal");
    let operation = Operation::Http {
        method: &method,
        path: &path,
        host: None,
        headers: Some(fields as &dyn HeaderLines),
        upgrade: None,
        tokens: Tokens::Absent,
    };
    let verdict = generation.decide(&generation.connection(source), 8080, operation);
    assert_eq!(verdict, generation.decide_by_reference(source, 8080, operation));
    verdict.is_allowed()
}

#[test]
fn hosts() {
    for Host { raw, canonical, name, error } in vectors().hosts {
        let host = CanonHost::parse(&raw);
        assert_eq!(host.as_ref().err().map(|error| error.label()), error.as_deref(), "{raw}");
        assert_eq!(host.as_ref().ok().map(ToString::to_string), canonical, "{raw}");
        assert_eq!(host.as_ref().ok().map(CanonHost::name), name.as_deref(), "{raw}");
    }
}

#[test]
fn addresses() {
    for Address { source, range, holds, error } in vectors().addresses {
        let rule = format!("from: [{{cidrs: [\"{range}\"], namespaces: [shop]}}]");
        match (generation("Allow", &rule), generation("Deny", &rule), error) {
            (Ok(allow), Ok(deny), None) => {
                let none = HeaderFields::new();
                let found = is_allowed(&allow, &source, &none);
                assert_eq!(Some(found), holds, "{source} {range}");
                assert_eq!(is_allowed(&deny, &source, &none), !found, "Deny {source} {range}");
            }
            (Err(said), Err(_), Some(error)) => assert!(said.contains(&error), "{range}: {said}"),
            (loaded, ..) => panic!("{range}: {:?}", loaded.err()),
        }
    }
}

#[test]
fn headers() {
    for Header { lines, test, allow, deny } in vectors().headers {
        let mut fields = HeaderFields::new();
        for line in &lines {
            fields.push("x-role", line).expect("a literal");
        }
        let rule = format!("to: [{{headers: [{{name: x-role, {test}}}]}}]");
        let load = |action| generation(action, &rule).expect("it loads");
        assert_eq!(is_allowed(&load("Allow"), "10.0.0.1", &fields), allow, "Allow {test} {lines:?}");
        assert_eq!(!is_allowed(&load("Deny"), "10.0.0.1", &fields), deny, "Deny {test} {lines:?}");
    }
}

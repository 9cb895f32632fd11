//! The schema is true: every example validates, typical mistakes do not, and the checker knows the same fields.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use postern_policy::{Scope, SourceFile, load, yaml};
use postern_svid::TrustDomain;
use serde_json::Value;

const TOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn schema() -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_postern"))
        .args(["policy", "schema"])
        .output()
        .expect("the binary starts");
    serde_json::from_slice(&output.stdout).expect("the schema is JSON")
}

fn value(text: &str) -> Value {
    let file = SourceFile { name: "document.yaml".into(), text: text.into() };
    yaml::parse(&file).unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

/// Documents in a text, cut at `---`.
fn documents(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    for line in text.lines() {
        if line.starts_with("---") {
            out.push(String::new());
        } else if let Some(last) = out.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    out.retain(|document| {
        (document.contains("postern.dev/v1alpha1") || document.contains("security.istio.io/v1"))
            && document.contains("kind:")
    });
    out
}

/// The `yaml` blocks of a page.
fn blocks(page: &str) -> String {
    let mut out = String::new();
    for block in page.split("```yaml\n").skip(1) {
        out.push_str("---\n");
        out.push_str(block.split("```").next().unwrap_or_default());
    }
    out
}

fn texts(directory: &Path, ending: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("the directory is there");
    let paths = entries.map(|entry| entry.expect("it can be listed").path());
    let wanted = paths.filter(|path| path.extension().is_some_and(|found| found == ending));
    wanted.map(|path| std::fs::read_to_string(path).expect("it can be read")).collect()
}

fn examples() -> Vec<String> {
    let top = Path::new(TOP);
    let mut out: Vec<String> =
        texts(&top.join("docs"), "md").iter().flat_map(|page| documents(&blocks(page))).collect();
    out.extend(texts(&top.join("docs/examples/shop"), "yaml").iter().flat_map(|text| documents(text)));
    let seed = std::fs::read_to_string(top.join("fuzz/seeds/documents/all.yaml")).expect("it is there");
    out.extend(documents(&seed));
    // The control plane's own kind, which no policy directory holds.
    out.retain(|text| !text.contains("kind: Registration\n"));
    out
}

#[test]
fn every_example_validates() {
    let schema = schema();
    let validator = jsonschema::validator_for(&schema).expect("the schema is one");
    let examples = examples();
    assert!(examples.len() > 80, "only {} documents were found", examples.len());
    for document in &examples {
        let errors: Vec<String> =
            validator.iter_errors(&value(document)).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{document}\n{errors:#?}");
    }
}

#[test]
fn each_kind_has_a_file_that_takes_no_other() {
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let written = Command::new(env!("CARGO_BIN_EXE_postern"))
        .args(["policy", "schema", "--out"])
        .arg(directory.path())
        .status()
        .expect("the binary starts");
    assert!(written.success());
    let examples: Vec<Value> = examples().iter().map(|text| value(text)).collect();
    for kind in [
        "AccessPolicy",
        "AuthorizationPolicy",
        "EgressPolicy",
        "MeshDefaults",
        "PeerAuthentication",
        "PolicyTest",
        "RateLimitPolicy",
        "RequestAuthentication",
        "Service",
    ] {
        let path = directory.path().join(format!("{kind}.schema.json"));
        let text = std::fs::read_to_string(path).expect("it was written");
        let schema: Value = serde_json::from_str(&text).expect("it is JSON");
        let validator = jsonschema::validator_for(&schema).expect("it is a schema");
        for example in &examples {
            assert_eq!(validator.is_valid(example), example["kind"] == kind, "{kind}: {example}");
        }
    }
    assert!(directory.path().join("documents.schema.json").exists());
}

fn loads(text: &str) -> Result<(), String> {
    let scope = Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: None,
    };
    let file = SourceFile { name: "a.yaml".into(), text: text.into() };
    load(&[file], &scope, 0).map(|_| ()).map_err(|errors| errors.to_string())
}

fn document(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: postern.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: a, namespace: root}}\nspec: {spec}\n"
    )
}

fn rule(fields: &str) -> String {
    document("AccessPolicy", &format!("{{action: Allow, rules: [{{name: r, {fields}}}]}}"))
}

fn issuer(fields: &str) -> String {
    document("MeshDefaults", &format!("{{jwt: {{issuers: [{{issuer: i, audiences: [o], {fields}}}]}}}}"))
}

fn to(alternatives: &str) -> String {
    document("EgressPolicy", &format!("{{action: Allow, rules: [{{name: r, to: [{alternatives}]}}]}}"))
}

fn case(request: &str, expect: &str) -> String {
    document(
        "PolicyTest",
        &format!(
            "{{workload: {{port: 80}}, cases: [{{name: c, request: {{{request}}}, expect: {{{expect}}}}}]}}"
        ),
    )
}

fn limit(fields: &str) -> String {
    document("RateLimitPolicy", &format!("{{limits: [{{name: a, {fields}}}]}}"))
}

fn invariant(written: &str) -> String {
    document("PolicyTest", &format!("{{workload: {{}}, invariants: [{written}]}}"))
}

/// The checker refuses each of these, and so does the schema.
#[test]
fn typical_mistakes_do_not_validate() {
    let schema = schema();
    let validator = jsonschema::validator_for(&schema).expect("the schema is one");
    for text in [
        document("AccesPolicy", "{action: Allow, rules: [{name: r}]}"),
        document("AccessPolicy", "{action: Alow, rules: [{name: r}]}"),
        document("AccessPolicy", "{action: Allow, rules: []}"),
        document("AccessPolicy", "{action: Allow}"),
        document("AccessPolicy", "{tier: Top, action: Allow, rules: [{name: r}]}"),
        document("AccessPolicy", "{enforcement: Shadow, action: Audit, rules: [{name: r}]}"),
        document("AccessPolicy", "{target: {}, action: Allow, rules: [{name: r}]}"),
        document("AccessPolicy", "{target: {all: false}, action: Allow, rules: [{name: r}]}"),
        document("AccessPolicy", "{target: {namespaces: []}, action: Allow, rules: [{name: r}]}"),
        document("AccessPolicy", "{target: {namespaces: [Shop]}, action: Allow, rules: [{name: r}]}"),
        document("AccessPolicy", "{action: Allow, rules: [{name: R}]}"),
        document("AccessPolicy", "{action: Allow, rules: [{name: r}]}").replace("v1alpha1", "v1"),
        document("AccessPolicy", "{action: Allow, rules: [{name: r}]}").replace(", namespace: root", ""),
        rule("from: []"),
        rule("from:"),
        rule("from: [{}]"),
        rule("from: [{serviceAccount: [a]}]"),
        rule("from: [{serviceAccounts: a}]"),
        rule("from: [{serviceAccounts: ['a*']}]"),
        rule("from: [{unauthenticated: true, namespaces: [a]}]"),
        rule("from: [{trustDomain: td, spiffe: ['spiffe://td/a']}]"),
        rule("from: [{not: {}}]"),
        rule("from: [{jwt: {}}]"),
        rule("from: [{jwt: {issuer: i, claims: {}}}]"),
        rule("from: [{jwt: {issuer: i, claims: {a: {}}}}]"),
        rule("from: [{jwt: {issuer: i, claims: {sub: {exact: [a]}}}}]"),
        rule("from: [{jwt: {issuer: i, claims: {a: {has: 'b c'}}}}]"),
        rule("from: [{jwt: {issuer: i, claims: {a: {has: []}}}}]"),
        rule("from: [{jwt: {issuer: i, claims: {a: {not: {}}}}}]"),
        rule("to: [{ports: [0]}]"),
        rule("to: [{ports: [65536]}]"),
        rule("to: [{paths: [a]}]"),
        rule("to: [{paths: [/a], pathPrefix: [/b]}]"),
        rule("to: [{grpc: [a/b], methods: [POST]}]"),
        rule("to: [{grpc: [a]}]"),
        rule("to: [{headers: [{name: X-A, present: true}]}]"),
        rule("to: [{headers: [{name: x-a}]}]"),
        rule("to: [{headers: [{name: x-a, present: true, exact: [a]}]}]"),
        rule("to: [{headers: [{name: x-a, exact: ['a,b']}]}]"),
        rule("to: [{headers: [{name: x-a, present: true, list: any}]}]"),
        rule("when: {}"),
        rule("when: {time: {zone: UTC}}"),
        rule("when: {time: {weekly: [Mon-Fri 06:00-22:00]}}"),
        rule("when: {time: {notAfter: tomorrow}}"),
        document("EgressPolicy", "{action: Allow, rules: [{name: r}]}"),
        document(
            "EgressPolicy",
            "{action: Allow, target: {all: true}, rules: [{name: r, to: [{services: [a]}]}]}",
        ),
        document("EgressPolicy", "{action: Allow, source: {}, rules: [{name: r, to: [{services: [a]}]}]}"),
        to("{}"),
        to("{ports: [443]}"),
        to("{hosts: [a.b], services: [a]}"),
        to("{hosts: ['a.b:443']}"),
        to("{hosts: [a.b], except: [10.0.0.0/8]}"),
        to("{hosts: [a.b], protocol: tls}"),
        to("{hosts: [a.b], protocol: Tls, methods: [GET]}"),
        to("{hosts: [a.b], paths: [/a], pathPrefix: [/b]}"),
        to("{services: [a/b/c]}"),
        document("Service", "{external: true, ports: [{port: 443, protocol: tls}]}"),
        document("Service", "{hosts: [a.b], ports: [{port: 443, protocol: tls}]}"),
        document("Service", "{external: true, hosts: [localhost], ports: [{port: 443, protocol: tls}]}"),
        document(
            "Service",
            "{external: true, hosts: [a.b], addresses: [10.96.0.1], ports: [{port: 443, protocol: tls}]}",
        ),
        case("egress: 'https://a.b', from: a", "allow: true"),
        case("egress: 'ftp://a.b'", "allow: true"),
        document("MeshDefaults", "{http: {escapedSlashes: Refuse}}"),
        document("MeshDefaults", "{onChange: {grace: 5 seconds}}"),
        document("MeshDefaults", "{jwt: {issuers: []}}"),
        issuer("jwks: {file: /k}").replace("audiences: [o], ", ""),
        issuer("jwks: {}"),
        issuer("jwks: {file: k}"),
        issuer("jwks: {file: /k, url: 'https://i/'}"),
        issuer("jwks: {file: /k, caFile: /c}"),
        issuer("jwks: {url: 'ftp://i/'}"),
        issuer("jwks: {url: 'https://u@i/'}"),
        issuer("jwks: {inline: {keys: []}}"),
        issuer("jwks: {inline: {keys: [{kty: RSA, d: x}]}}"),
        issuer("jwks: {inline: {keys: [{kty: RSA}]}, maxStale: 1h}"),
        issuer("jwks: {file: /k}, algorithms: [none]"),
        issuer("jwks: {file: /k}, algorithms: [HS256]"),
        issuer("jwks: {file: /k}, algorithms: []"),
        issuer("jwks: {file: /k}, clockSkew: soon"),
        issuer("jwks: {file: /k}, header: {name: X-Token}"),
        issuer("jwks: {file: /k}, header: {prefix: Bearer}"),
        document("MeshDefaults", "{staleAfter: a day}"),
        document("Service", "{ports: [{port: 80, protocol: https}], endpoints: [{address: 10.0.0.1}]}"),
        document(
            "Service",
            "{identity: web, ports: [{port: 80, protocol: http}], endpoints: [{address: 10.0.0.1}]}",
        ),
        limit(""),
        limit("rate: 10"),
        limit("rate: 10/d"),
        limit("rate: 0/s"),
        limit("rate: 1/s, burst: 0"),
        limit("rate: 1/s, burst: 1000001"),
        limit("rate: 1/s, key: []"),
        limit("rate: 1/s, key: [source.ip]"),
        limit("rate: 1/s, key: [request.header.X-Tenant]"),
        limit("rate: 1/s, maxKeys: 10"),
        limit("rate: 1/s, key: [source.identity], maxKeys: 100001"),
        limit("rate: 1/s, match: {}"),
        limit("rate: 1/s, match: {paths: [/a], pathPrefix: [/b]}"),
        document("RateLimitPolicy", "{limits: []}"),
        document("RateLimitPolicy", "{onLimit: {http: 503}, limits: [{name: a, rate: 1/s}]}"),
        document("RateLimitPolicy", "{onLimit: {}, limits: [{name: a, rate: 1/s}]}"),
        document("RateLimitPolicy", "{overrides: [{rate: 1/s}], limits: [{name: a, rate: 1/s}]}"),
        case("from: a, path: /", "allow: true, limits: []"),
        case("path: /", "allow: true"),
        case("from: a, unauthenticated: true, path: /", "allow: true"),
        case("from: a", "allow: true"),
        case("from: a, path: /, rawPath: /", "allow: true"),
        case("from: a, tcp: true, method: GET", "allow: true"),
        case("from: a, tcp: true, jwt: {issuer: i}", "allow: true"),
        case("from: a, path: /, jwt: {}", "allow: true"),
        case("from: a, path: /, jwt: {issuer: i, unverified: true}", "allow: true"),
        case("from: a, path: /, jwt: {issuer: i, claims: {sub: a}}", "allow: true"),
        case("from: a, path: /", "allow: false"),
        case("from: a, path: /", "allow: rule"),
        case("from: a, path: /", "allow: true, deny: true"),
        case("from: a, path: /", "shadow: a/b"),
        document("PolicyTest", "{workload: {port: 80}}"),
        invariant(""),
        invariant("{name: a}"),
        invariant("{name: a, never: {}, always: {}}"),
        invariant("{never: {}}"),
        invariant("{name: a, never: {from: []}}"),
        invariant("{name: a, never: {to: [{headers: [{name: x-a, present: true}]}]}}"),
        // Numbers are what YAML 1.2 takes for some.
        rule("to: [{ports: ['8080']}]"),
        rule("to: [{ports: [8_080]}]"),
        rule("to: [{ports: ['0x50']}]"),
        rule("to: [{ports: [80.5]}]"),
        rule("to: [{ports: [-80]}]"),
        rule("to: [{ports: [true]}]"),
        limit("rate: 10/s, burst: '20'"),
        limit("rate: 10/s, key: [source.identity], maxKeys: 1_000"),
        document("Service", "{external: true, hosts: [a.b], ports: [{port: '443', protocol: tls}]}"),
    ] {
        assert!(!validator.is_valid(&value(&text)), "the schema takes:\n{text}");
        assert!(loads(&text).is_err(), "a sidecar takes:\n{text}");
    }
    let claim = invariant("{name: a, never: {from: [{not: {namespaces: [a]}}], to: [{ports: [80]}]}}");
    for text in [
        limit(
            "rate: 10/s, key: [source.identity, request.header.x-tenant], maxKeys: 10, match: {from: [{namespaces: [a]}]}",
        ),
        rule("to: [{ports: [80]}]"),
        rule("to: [{ports: [0x50, +81]}]"),
        to("{cidrs: [10.0.0.0/8], except: [10.1.0.0/16], protocol: Http, methods: [GET]}"),
        to("{services: ['*', a, a/b, 'a/*']}, {hosts: ['*.a.b'], ports: [443], protocol: Tls}"),
        document("Service", "{external: true, hosts: [a.b], ports: [{port: 443, protocol: tls}]}"),
        case("from: a, path: /", "deny: true"),
        case("from: a, path: /", "deny: token_invalid"),
        claim,
        case("egress: 'http://a.b/c', method: POST, address: 10.0.0.1", "deny: true"),
    ] {
        assert!(validator.is_valid(&value(&text)) && loads(&text).is_ok(), "{text}");
    }
}

/// A field that one of the two does not know would be refused by it, or never checked by the other.
#[test]
fn the_checker_and_the_schema_know_the_same_fields() {
    let schema = schema();
    let request = "/$defs/Request";
    for (text, definition) in [
        (document("AccessPolicy", "{zzzzzz: 1}"), "/$defs/AccessSpec"),
        (document("AccessPolicy", "{target: {zzzzzz: 1}}"), "/$defs/Target"),
        (document("AccessPolicy", "{}").replace("{name: a,", "{zzzzzz: 1,"), "/$defs/Metadata"),
        (rule("zzzzzz: 1"), "/$defs/AccessRule"),
        (rule("from: [{zzzzzz: 1}]"), "/$defs/From"),
        (rule("from: [{not: {zzzzzz: 1}}]"), "/$defs/NotFrom"),
        (rule("to: [{zzzzzz: 1}]"), "/$defs/To"),
        (rule("to: [{not: {zzzzzz: 1}}]"), "/$defs/NotTo"),
        (rule("to: [{headers: [{zzzzzz: 1}]}]"), "/$defs/HeaderMatch"),
        (rule("to: [{headers: [{not: {zzzzzz: 1}}]}]"), "/$defs/HeaderMatch/properties/not"),
        (rule("when: {zzzzzz: 1}"), "/$defs/When"),
        (rule("when: {time: {zzzzzz: 1}}"), "/$defs/When/properties/time"),
        (document("EgressPolicy", "{zzzzzz: 1}"), "/$defs/EgressSpec"),
        (document("EgressPolicy", "{source: {zzzzzz: 1}}"), "/$defs/EgressSource"),
        (document("EgressPolicy", "{rules: [{zzzzzz: 1}]}"), "/$defs/EgressRule"),
        (to("{zzzzzz: 1}"), "/$defs/Destination"),
        (document("MeshDefaults", "{zzzzzz: 1}"), "/$defs/DefaultsSpec"),
        (
            document("MeshDefaults", "{trustDomains: {zzzzzz: 1}}"),
            "/$defs/DefaultsSpec/properties/trustDomains",
        ),
        (document("MeshDefaults", "{http: {zzzzzz: 1}}"), "/$defs/DefaultsSpec/properties/http"),
        (document("MeshDefaults", "{onChange: {zzzzzz: 1}}"), "/$defs/DefaultsSpec/properties/onChange"),
        (document("MeshDefaults", "{jwt: {zzzzzz: 1}}"), "/$defs/DefaultsSpec/properties/jwt"),
        (document("MeshDefaults", "{jwt: {issuers: [{zzzzzz: 1}]}}"), "/$defs/Issuer"),
        (issuer("jwks: {zzzzzz: 1}"), "/$defs/Issuer/properties/jwks"),
        (issuer("header: {zzzzzz: 1}"), "/$defs/Issuer/properties/header"),
        (rule("from: [{jwt: {zzzzzz: 1}}]"), "/$defs/Jwt"),
        (rule("from: [{jwt: {claims: {a: {zzzzzz: 1}}}}]"), "/$defs/Claim"),
        (rule("from: [{jwt: {claims: {a: {not: {zzzzzz: 1}}}}}]"), "/$defs/Claim/properties/not"),
        (case("jwt: {zzzzzz: 1}", ""), "/$defs/Request/properties/jwt"),
        (document("Service", "{zzzzzz: 1}"), "/$defs/ServiceSpec"),
        (document("Service", "{ports: [{zzzzzz: 1}]}"), "/$defs/ServicePort"),
        (document("Service", "{endpoints: [{zzzzzz: 1}]}"), "/$defs/Endpoint"),
        (document("RateLimitPolicy", "{zzzzzz: 1}"), "/$defs/RateLimitSpec"),
        (limit("zzzzzz: 1"), "/$defs/Limit"),
        (limit("match: {zzzzzz: 1}"), "/$defs/LimitMatch"),
        (
            document("RateLimitPolicy", "{overrides: [{zzzzzz: 1}]}"),
            "/$defs/RateLimitSpec/properties/overrides/items",
        ),
        (document("RateLimitPolicy", "{onLimit: {zzzzzz: 1}}"), "/$defs/RateLimitSpec/properties/onLimit"),
        (document("PolicyTest", "{zzzzzz: 1}"), "/$defs/TestSpec"),
        (document("PolicyTest", "{workload: {zzzzzz: 1}}"), "/$defs/TestSpec/properties/workload"),
        (document("PolicyTest", "{cases: [{zzzzzz: 1}]}"), "/$defs/TestSpec/properties/cases/items"),
        (
            document("PolicyTest", "{workload: {}, invariants: [{zzzzzz: 1}]}"),
            "/$defs/TestSpec/properties/invariants/items",
        ),
        (
            document("PolicyTest", "{workload: {}, invariants: [{name: a, never: {zzzzzz: 1}}]}"),
            "/$defs/Claimed",
        ),
        (case("zzzzzz: 1", ""), request),
        (case("headers: [{zzzzzz: 1}]", ""), "/$defs/Request/properties/headers/items"),
        (case("", "zzzzzz: 1"), "/$defs/Expect"),
    ] {
        let refused = loads(&text).expect_err("the field is unknown");
        let known = refused.split("known: ").nth(1).unwrap_or_else(|| panic!("{text}\n{refused}"));
        let known = known.lines().next().unwrap_or_default().trim_end_matches(')');
        let known: BTreeSet<&str> = known.split(", ").collect();
        let described = schema.pointer(definition).and_then(|found| found["properties"].as_object());
        let described: BTreeSet<&str> = described.expect(definition).keys().map(String::as_str).collect();
        assert_eq!(known, described, "{definition}");
    }
}

/// Istio's fields too, but for those that the checker knows in order to say what to write instead.
#[test]
fn the_checker_and_the_schema_know_the_same_fields_of_istio() {
    let schema = schema();
    let istio =
        |kind: &str, spec: &str| document(kind, spec).replace("postern.dev/v1alpha1", "security.istio.io/v1");
    let rule = |fields: &str| istio("AuthorizationPolicy", &format!("{{rules: [{{{fields}}}]}}"));
    let refused = [
        "provider",
        "targetRef",
        "targetRefs",
        "remoteIpBlocks",
        "notRemoteIpBlocks",
        "fromParams",
        "fromCookies",
        "outputPayloadToHeader",
        "outputClaimToHeaders",
        "timeout",
    ];
    for (text, definition) in [
        (istio("AuthorizationPolicy", "{zzzzzz: 1}"), "/$defs/AuthorizationSpec"),
        (istio("AuthorizationPolicy", "{selector: {zzzzzz: 1}}"), "/$defs/IstioSelector"),
        (rule("zzzzzz: 1"), "/$defs/IstioRule"),
        (rule("from: [{zzzzzz: 1}]"), "/$defs/IstioRule/properties/from/items"),
        (rule("from: [{source: {zzzzzz: 1}}]"), "/$defs/IstioSource"),
        (rule("to: [{zzzzzz: 1}]"), "/$defs/IstioRule/properties/to/items"),
        (rule("to: [{operation: {zzzzzz: 1}}]"), "/$defs/IstioOperation"),
        (rule("when: [{zzzzzz: 1}]"), "/$defs/IstioCondition"),
        (istio("PeerAuthentication", "{zzzzzz: 1}"), "/$defs/PeerAuthenticationSpec"),
        (istio("PeerAuthentication", "{mtls: {zzzzzz: 1}}"), "/$defs/IstioMtls"),
        (istio("RequestAuthentication", "{zzzzzz: 1}"), "/$defs/RequestAuthenticationSpec"),
        (istio("RequestAuthentication", "{jwtRules: [{zzzzzz: 1}]}"), "/$defs/IstioJwtRule"),
        (
            istio("RequestAuthentication", "{jwtRules: [{issuer: a, fromHeaders: [{zzzzzz: 1}]}]}"),
            "/$defs/IstioJwtRule/properties/fromHeaders/items",
        ),
    ] {
        let said = loads(&text).expect_err("the field is unknown");
        let known = said.split("known: ").nth(1).unwrap_or_else(|| panic!("{text}\n{said}"));
        let known = known.lines().next().unwrap_or_default().trim_end_matches(')');
        let known: BTreeSet<&str> = known.split(", ").filter(|field| !refused.contains(field)).collect();
        let described = schema.pointer(definition).and_then(|found| found["properties"].as_object());
        let described: BTreeSet<&str> = described.expect(definition).keys().map(String::as_str).collect();
        assert_eq!(known, described, "{definition}");
    }
}

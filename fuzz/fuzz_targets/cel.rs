//! Arbitrary text as the condition of a rule, asked about a request: never a panic, never long, a mistake has its place, and
//! both engines decide alike.

#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, LazyLock};
use std::time::UNIX_EPOCH;

use libfuzzer_sys::fuzz_target;
use postern_policy::norm::{CanonHost, CanonMethod, CanonPath};
use postern_policy::{
    Claims, HeaderFields, HeaderLines, Operation, Scope, Source, SourceFile, Tokens, Workload, load,
};
use postern_svid::{SpiffeId, TrustDomain};

static SCOPE: LazyLock<Scope> = LazyLock::new(|| Scope {
    trust_domain: TrustDomain::parse("td").expect("a literal"),
    root_namespace: "root".into(),
    workload: Some(Workload { namespace: "a".into(), service_account: "a".into(), labels: Default::default() }),
});
static CLAIMS: LazyLock<[Arc<Claims>; 1]> = LazyLock::new(|| {
    let payload = br#"{"iss": "i", "exp": 99999999999, "a": 1, "b": ["x", "y", 1.5, null, {"c": true}], "d": {"e": "f"}}"#;
    [Arc::new(Claims::from_json(payload).expect("a literal"))]
});

/// As a text of YAML.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            other => out.push_str(&format!("\\U{:08x}", u32::from(other))),
        }
    }
    out.push('"');
    out
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // What follows a zero is the value of a header field.
    let (text, value) = text.split_once('\0').unwrap_or((text, "a"));
    let mut file = String::new();
    for (name, action) in [("p", "Allow"), ("q", "Deny"), ("s", "Audit")] {
        file.push_str(&format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, namespace: a}}\nspec:\n  \
             action: {action}\n  rules:\n  - name: r\n    when:\n      cel: {}\n",
            quoted(text)
        ));
    }
    let lines = file.lines().count();
    let generation = match load(&[SourceFile { name: "p".into(), text: file.into_bytes() }], &SCOPE, 1) {
        Ok(generation) => generation,
        Err(errors) => {
            for error in &errors {
                assert!((1..=lines).contains(&error.line), "{error:?}");
            }
            assert!(!errors.to_string().contains('\u{1b}'), "an escape would reach the reader's terminal");
            return;
        }
    };
    let _ = generation.tell_time(UNIX_EPOCH);
    let mut fields = HeaderFields::new();
    let _ = fields.push("x-a", value);
    let method = CanonMethod::get();
    let path = CanonPath::parse("/a;b/%2561", &generation.defaults().path).expect("a literal");
    let host = CanonHost::parse("a.example").expect("a literal");
    let http = Operation::Http {
        method: &method,
        path: &path,
        host: Some(&host),
        headers: Some(&fields as &dyn HeaderLines),
        upgrade: None,
        tokens: Tokens::Verified(&*CLAIMS),
    };
    let id = SpiffeId::parse("spiffe://td/ns/a/sa/b").expect("a literal");
    for identity in [None, Some(&id)] {
        let source = Source { identity, address: IpAddr::V4(Ipv4Addr::LOCALHOST) };
        let connection = generation.connection(source);
        for operation in [http, Operation::Tcp] {
            let verdict = generation.decide(&connection, 80, operation);
            assert_eq!(verdict, generation.decide_by_reference(source, 80, operation));
            let _ = generation.explain(source, 80, operation).to_string();
        }
    }
});

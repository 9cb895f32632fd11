//! The rules that the benches load: those that people write. Who may call which path with which method; a tenth by namespace
//! and prefix, a tenth Denies by prefix, half of these with an exception.

#![allow(dead_code, reason = "each bench uses its part")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use postern_policy::{Scope, SourceFile, Workload};
use postern_svid::TrustDomain;

pub(crate) mod hostile;

/// Rules in a document.
const IN_DOCUMENT: usize = 5;
/// Files of a set, at most.
const FILES: usize = 2_000;
/// The port that is asked for.
pub(crate) const PORT: u16 = 8080;

/// The text of rule `n`, and whether it denies.
pub(crate) fn rule(n: usize) -> (String, bool) {
    match n % 20 {
        16 | 17 => (
            format!(
                "{{name: r{n}, from: [{{namespaces: [ns{n}]}}], to: [{{methods: [GET], pathPrefix: [/n{n}]}}]}}"
            ),
            false,
        ),
        18 => (format!("{{name: r{n}, to: [{{pathPrefix: [/admin{n}]}}]}}"), true),
        19 => (
            format!(
                "{{name: r{n}, from: [{{not: {{namespaces: [ops]}}}}], to: [{{pathPrefix: [/internal{n}]}}]}}"
            ),
            true,
        ),
        _ => (
            format!(
                "{{name: r{n}, from: [{{serviceAccounts: [a{n}, b{}]}}], to: [{{methods: [GET, HEAD], paths: [/v1/p{n}, '/v1/q{n}/{{*}}'], ports: [{PORT}]}}]}}",
                n % 97
            ),
            false,
        ),
    }
}

/// A caller, as the path of its SPIFFE id in the trust domain `td`, and the path that it asks for: what rule `n` is about.
pub(crate) fn question(n: usize) -> (String, String) {
    match n % 20 {
        16 | 17 => (format!("ns/ns{n}/sa/x"), format!("/n{n}/a/b")),
        18 => (format!("ns/shop/sa/a{n}"), format!("/admin{n}/x")),
        19 => ("ns/shop/sa/x".to_owned(), format!("/internal{n}/x")),
        _ if n.is_multiple_of(2) => (format!("ns/shop/sa/a{n}"), format!("/v1/p{n}")),
        _ => (format!("ns/shop/sa/b{}", n % 97), format!("/v1/q{n}/7")),
    }
}

/// Documents with that many rules, all for one workload.
pub(crate) fn documents(rules: usize) -> Vec<SourceFile> {
    let mut files = Vec::new();
    let mut texts: [Vec<String>; 2] = Default::default();
    for n in 0..rules {
        let (text, denies) = rule(n);
        let group = &mut texts[usize::from(denies)];
        group.push(text);
        if group.len() == IN_DOCUMENT || n + 2 >= rules {
            let mut out = String::new();
            let action = if denies { "Deny" } else { "Allow" };
            let _ = write!(
                out,
                "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p{n}, namespace: shop}}\nspec:\n  action: {action}\n  rules:\n"
            );
            for rule in group.drain(..) {
                let _ = writeln!(out, "  - {rule}");
            }
            files.push(out);
        }
    }
    // Many documents in a file: the number of files is bounded too.
    let at_once = files.len().div_ceil(FILES).max(1);
    let chunk = |(n, texts): (usize, &[String])| SourceFile {
        name: format!("{n}.yaml"),
        text: texts.join("---\n").into_bytes(),
    };
    files.chunks(at_once).enumerate().map(chunk).collect()
}

pub(crate) fn scope() -> Scope {
    Scope {
        trust_domain: TrustDomain::parse("td").expect("a literal"),
        root_namespace: "root".into(),
        workload: Some(Workload {
            namespace: "shop".into(),
            service_account: "orders".into(),
            labels: BTreeMap::new(),
        }),
    }
}

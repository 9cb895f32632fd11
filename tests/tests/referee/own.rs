//! Rules of our own kind that an export can say, field by field.

use postern_policy::{Generation, SourceFile, load};

use super::policy::Words;
use super::scope;

/// `action` and `rules` of an AccessPolicy each; `PORT` and `ADDRESS` are the machine's.
pub(crate) const SPECS: [&str; 18] = [
    "action: Allow, rules: [{name: r}]",
    "action: Allow, rules: [{name: r, from: [{spiffe: [\"spiffe://home/ns/web/sa/front\"]}]}]",
    "action: Allow, rules: [{name: r, from: [{serviceAccounts: [web/front]}]}]",
    "action: Allow, rules: [{name: r, from: [{namespaces: [web]}]}]",
    "action: Allow, rules: [{name: r, from: [{namespaces: [web], trustDomain: else}]}]",
    "action: Allow, rules: [{name: r, from: [{trustDomain: alias}]}]",
    "action: Allow, rules: [{name: r, from: [{cidrs: [ADDRESS]}]}]",
    "action: Allow, rules: [{name: r, from: [{unauthenticated: true, cidrs: [ADDRESS]}]}]",
    "action: Allow, rules: [{name: r, from: [{trustDomain: home, not: {namespaces: [web], cidrs: [ADDRESS]}}]}]",
    "action: Allow, rules: [{name: r, to: [{methods: [GET], paths: [/a, \"/{*}/b\", \"/a/{**}\"]}]}]",
    "action: Allow, rules: [{name: r, to: [{pathPrefix: [/a]}, {methods: [TRACE]}]}]",
    "action: Allow, rules: [{name: r, to: [{grpc: [\"a/b*\"]}, {hosts: [a.x, \"*.x\"]}]}]",
    "action: Allow, rules: [{name: r, to: [{ports: [PORT]}]}]",
    "target: {ports: [PORT]}, action: Allow, rules: [{name: r, to: [{methods: [\"*\"]}]}]",
    "action: Allow, rules: [{name: r, to: [{not: {methods: [GET], pathPrefix: [/admin], hosts: [b.x], ports: [9]}}]}]",
    "action: Allow, rules: [{name: r, to: [{headers: [{name: x-a, present: true}]}, {headers: [{name: x-b, not: {prefix: [v]}}]}]}]",
    "action: Allow, rules: [{name: r, to: [{headers: [{name: x-a, exact: [v], list: any}, {name: x-b, present: false}]}]}]",
    "action: Deny, rules: [{name: r, from: [{not: {namespaces: [web]}}], to: [{headers: [{name: x-a, exact: [v]}]}, {pathPrefix: [/a]}]}]",
];

pub(crate) fn generation(spec: &str, words: &Words) -> Generation {
    let header = |name: &str| {
        format!(
            "---\napiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, namespace: shop}}\n"
        )
    };
    let spec = spec.replace("PORT", &words.ports[0]).replace("ADDRESS", &words.networks[0]);
    let mut text = String::from(
        "apiVersion: postern.dev/v1alpha1\nkind: MeshDefaults\nmetadata: {name: d, namespace: root}\n\
         spec: {trustDomains: {aliases: [alias]}}\n",
    );
    text.push_str(&format!("{}spec: {{{spec}}}\n", header("one")));
    if spec.starts_with("action: Deny") {
        text.push_str(&format!("{}spec: {{action: Allow, rules: [{{name: all}}]}}\n", header("all")));
    }
    let file = SourceFile { name: "own.yaml".into(), text: text.into_bytes() };
    load(&[file], &scope(), 1).unwrap_or_else(|errors| panic!("{errors}"))
}

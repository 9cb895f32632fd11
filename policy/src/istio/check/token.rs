//! What is asked of tokens: `requestPrincipals` and `request.auth.*`.

use super::super::token::{Asks, RequestPrincipal, TokenTest};
use super::super::{Test, TextPattern};
use super::Context;
use super::condition::texts;
use super::source::Pair;
use crate::check::Page;
use crate::doc::{List, Sp};
use crate::tokens::ClaimPath;
use crate::yaml;

const ATTRIBUTES: [&str; 4] = [
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[NAME]",
];
/// Claims that are words between spaces, as Istio reads them.
pub(super) const WORDS: [&str; 2] = ["scope", "permission"];

/// `requestPrincipals` and its `not`.
pub(super) fn principals(
    page: &mut Page<'_>,
    key: &str,
    (values, not): Pair<'_>,
    context: &Context<'_>,
) -> TokenTest {
    let test = Test {
        values: request_principals(page, values, context),
        not: request_principals(page, not, context),
    };
    TokenTest { key: key.into(), asks: Asks::Principal(test) }
}

fn request_principals(
    page: &mut Page<'_>,
    list: Option<&List<String>>,
    context: &Context<'_>,
) -> Vec<RequestPrincipal> {
    /// An issuer and a subject.
    const LONGEST: usize = 2_048;
    let Some(list) = list else { return Vec::new() };
    let mut out = Vec::with_capacity(list.value.len());
    for item in page.items(list, "requestPrincipals") {
        if item.value.is_empty() || item.value.len() > LONGEST {
            page.error_with(
                item.referenced,
                format!("a value has 1 to {LONGEST} characters"),
                "write `ISSUER/SUBJECT`; `*` stands for any",
            );
            continue;
        }
        let pattern = RequestPrincipal::parse(&item.value);
        if !issuers(context).any(|name| pattern.issuer.matches(name.as_bytes())) {
            let names: Vec<&str> = issuers(context).collect();
            let help = match (&pattern.issuer, names.is_empty()) {
                (TextPattern::Exact(issuer), false) => yaml::suggest(issuer, &names),
                _ => NOBODY.to_owned(),
            };
            page.warn(
                item.referenced,
                "nobody configured an issuer of such tokens, so no request has one",
                help,
            );
        } else if pattern.subject == TextPattern::Exact("".into()) {
            page.warn(
                item.referenced,
                "this has no subject, and no token is without one",
                format!("write `{}/*` for any", yaml::printable(item.value.trim_end_matches('/'))),
            );
        }
        out.push(pattern);
    }
    out
}

const NOBODY: &str =
    "write a RequestAuthentication with `jwtRules`, or name the issuer in MeshDefaults (`jwt`)";

fn issuers<'a>(context: &Context<'a>) -> impl Iterator<Item = &'a str> {
    let rules = context.rules;
    rules.issuers.iter().map(|issuer| &*issuer.name).chain(rules.request_issuers.iter().map(|name| &**name))
}

/// An attribute `request.auth.*`.
pub(super) fn attribute(
    page: &mut Page<'_>,
    key: &Sp<String>,
    pair: Pair<'_>,
    context: &Context<'_>,
) -> Option<TokenTest> {
    let text = key.value.as_str();
    let path = match text {
        "request.auth.principal" => return Some(principals(page, text, pair, context)),
        "request.auth.audiences" => "/aud".to_owned(),
        "request.auth.presenter" => "/azp".to_owned(),
        _ => {
            let Some(names) = text.strip_prefix("request.auth.claims").and_then(nested) else {
                page.error_with(
                    key.referenced,
                    format!("unknown attribute `{}`", yaml::printable(text)),
                    yaml::suggest(text, &ATTRIBUTES),
                );
                return None;
            };
            pointer(&names)
        }
    };
    let path = match ClaimPath::parse(&path) {
        Ok(path) => path,
        Err(message) => {
            page.error(key.referenced, message);
            return None;
        }
    };
    if issuers(context).next().is_none() {
        page.warn(key.referenced, "nobody configured an issuer of tokens, so no request has one", NOBODY);
    }
    let are_words = WORDS.iter().any(|name| path.as_str().strip_prefix('/') == Some(name));
    let test = Test { values: texts(page, pair.0), not: texts(page, pair.1) };
    Some(TokenTest { key: text.into(), asks: Asks::Claim { path, are_words, test } })
}

/// The names in `[a][b]`.
fn nested(mut text: &str) -> Option<Vec<&str>> {
    let mut names = Vec::new();
    while !text.is_empty() {
        let (name, rest) = text.strip_prefix('[')?.split_once(']')?;
        names.push(name);
        text = rest;
    }
    (!names.is_empty()).then_some(names)
}

/// As a JSON Pointer.
fn pointer(names: &[&str]) -> String {
    names.iter().map(|name| format!("/{}", name.replace('~', "~0").replace('/', "~1"))).collect()
}

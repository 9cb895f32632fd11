//! `jwt` of a rule's `from`, and the token of a PolicyTest's request.

use serde_json::{Map, Value};

use super::issuers::{is_text, texts};
use super::{Page, Rules};
use crate::doc::{ClaimDoc, JwtDoc, List, NotClaimDoc, Sp, TokenDoc, Words};
use crate::jwt::{ClaimMatch, ClaimTest, ClaimValue, JwtMatch};
use crate::question::ToldToken;
use crate::tokens::{ClaimPath, Claims};
use crate::yaml;

/// Claims that have fields of their own.
const FIELDS: [(&str, &str); 3] = [("iss", "issuer"), ("aud", "audiences"), ("sub", "subjects")];
/// Claims that whoever verifies a token has looked at.
const TIMES: [&str; 3] = ["exp", "nbf", "iat"];

/// Checks `jwt` of an alternative.
pub(super) fn token(page: &mut Page<'_>, entry: &Sp<JwtDoc>, rules: &Rules<'_>) -> Option<JwtMatch> {
    let JwtDoc { issuer, audiences, subjects, claims } = &entry.value;
    let Some(known) = rules.issuers.iter().find(|known| *known.name == *issuer.value) else {
        unknown_issuer(page, issuer, rules);
        return None;
    };
    if let Some(list) = audiences {
        for audience in &list.value {
            if is_text(&audience.value) && !known.audiences.iter().any(|name| **name == *audience.value) {
                let names: Vec<&str> = known.audiences.iter().map(|name| &**name).collect();
                page.warn(
                    audience.referenced,
                    "the issuer is not configured for this audience: a token needs one of its own too",
                    yaml::suggest(&audience.value, &names),
                );
            }
        }
    }
    let claims = claims.as_ref().map(|claims| {
        if claims.value.is_empty() {
            page.error_with(claims.referenced, "`claims` is empty", "name a claim, or leave it out");
        }
        claims.value.iter().flat_map(|(name, test)| claim(page, name, test)).collect()
    });
    Some(JwtMatch {
        issuer: issuer.value.as_str().into(),
        audiences: audiences.as_ref().map(|list| texts(page, list, "audiences").into()),
        subjects: subjects.as_ref().map(|list| texts(page, list, "subjects").into()),
        claims: claims.unwrap_or_default(),
    })
}

fn unknown_issuer(page: &mut Page<'_>, issuer: &Sp<String>, rules: &Rules<'_>) {
    let names: Vec<&str> = rules.issuers.iter().map(|known| &*known.name).collect();
    let help = match names.is_empty() {
        true => add_issuer(rules),
        false => yaml::suggest(&issuer.value, &names),
    };
    page.error_with(
        issuer.referenced,
        format!("nobody configured the issuer `{}`", yaml::printable(&issuer.value)),
        help,
    );
}

/// The way out where no issuer is configured.
pub(super) fn add_issuer(rules: &Rules<'_>) -> String {
    format!(
        "add it to MeshDefaults in the namespace `{}`: `jwt: {{issuers: [{{issuer: …, audiences: […], jwks: {{…}}}}]}}`",
        rules.root_namespace
    )
}

fn claim(page: &mut Page<'_>, name: &str, entry: &Sp<ClaimDoc>) -> Vec<ClaimMatch> {
    let at = entry.referenced;
    let ClaimDoc { exact, prefix, any, has, present, not } = &entry.value;
    let path = match ClaimPath::parse(name) {
        Ok(path) => path,
        Err(message) => {
            page.error(at, format!("`{}`: {message}", yaml::printable(name)));
            return Vec::new();
        }
    };
    if let Some((_, field)) = FIELDS.iter().find(|(claim, _)| *claim == name) {
        page.error_with(at, format!("`{name}` has a field of its own"), format!("write `{field}`"));
    } else if TIMES.contains(&name) {
        page.error_with(at, format!("`{name}` is looked at when the token is verified"), "leave it out");
    }
    let mut tests = Vec::new();
    if let Some(values) = values(page, exact.as_ref(), prefix.as_ref()) {
        tests.push(ClaimTest::Is(values));
    }
    if let Some(values) = values(page, any.as_ref(), None) {
        tests.push(ClaimTest::Any(values));
    }
    if let Some(words) = has {
        tests.push(ClaimTest::Has(self::words(page, words)));
    }
    if let Some(not) = not {
        let NotClaimDoc { exact, prefix, has } = &not.value;
        let values = values(page, exact.as_ref(), prefix.as_ref());
        if values.is_none() && has.is_none() {
            page.error_with(not.referenced, "`not` is empty", "say which values are excluded");
        }
        tests.extend(values.map(ClaimTest::Not));
        tests.extend(has.as_ref().map(|words| ClaimTest::Lacks(self::words(page, words))));
    }
    if let Some(present) = present {
        if !present.value && !tests.is_empty() {
            page.error_with(
                present.referenced,
                "a claim that is absent has no value to look at",
                "write two alternatives, or leave one of them out",
            );
        }
        tests.push(if present.value { ClaimTest::Present } else { ClaimTest::Absent });
    }
    if tests.is_empty() {
        page.error_with(
            at,
            "this claim asks for nothing",
            "write `exact`, `prefix`, `any`, `has`, `not` or `present`",
        );
    }
    tests.into_iter().map(|test| ClaimMatch { path: path.clone(), test }).collect()
}

fn values(
    page: &mut Page<'_>,
    exact: Option<&List<String>>,
    prefix: Option<&List<String>>,
) -> Option<Vec<ClaimValue>> {
    if exact.is_none() && prefix.is_none() {
        return None;
    }
    let mut out = Vec::new();
    for item in exact.map(|list| page.items(list, "exact")).unwrap_or_default() {
        out.push(ClaimValue::exact(&item.value));
    }
    for item in prefix.map(|list| page.items(list, "prefix")).unwrap_or_default() {
        if item.value.is_empty() {
            page.error_with(item.referenced, "every value begins so", "write `present: true`");
        }
        out.push(ClaimValue::Prefix(item.value.as_str().into()));
    }
    Some(out)
}

fn words(page: &mut Page<'_>, words: &Sp<Words>) -> Vec<Box<str>> {
    let Words(list) = &words.value;
    if list.is_empty() {
        page.error_with(words.referenced, "`has` is empty", "name a word, or leave it out");
    }
    for word in list {
        if word.is_empty() || word.contains(' ') {
            page.error_with(
                words.referenced,
                "a word holds no space: claims like `scope` are words between spaces",
                "write a list: `has: [one, other]` asks for each of them",
            );
        }
    }
    list.iter().map(|word| word.as_str().into()).collect()
}

/// The token of a PolicyTest's request, which is in time if it does not say `exp`; `None` if something in it is wrong.
/// Whether the workload's issuers take it is found out when the case is run.
pub(super) fn tested(page: &mut Page<'_>, entry: &Sp<TokenDoc>, rules: &Rules<'_>) -> Option<ToldToken> {
    let TokenDoc { unverified, issuer, subject, audiences, claims } = &entry.value;
    if let Some(flag) = unverified {
        if !flag.value {
            page.error_with(flag.referenced, "`unverified` can only be true", "leave it out");
        } else if issuer.is_some() || subject.is_some() || audiences.is_some() || claims.is_some() {
            page.error_with(
                flag.referenced,
                "of a token that could not be verified nothing is known",
                "leave out the other fields, or `unverified`",
            );
        }
        return Some(ToldToken::Unverified);
    }
    let Some(issuer) = issuer else {
        let known = match (rules.issuers, rules.request_issuers) {
            ([only], []) => format!(" (`{}` is the one that is configured)", yaml::printable(&only.name)),
            _ => String::new(),
        };
        page.error_with(
            entry.referenced,
            "the token has no issuer",
            format!("write `issuer`{known}, or `unverified: true` for a token whose key is not at hand"),
        );
        return None;
    };
    let mut object: Map<String, Value> =
        claims.as_ref().map(|claims| claims.value.clone()).unwrap_or_default();
    if let Some(at) = claims.as_ref().map(|claims| claims.referenced) {
        for (claim, field) in [("iss", "issuer"), ("aud", "audiences"), ("sub", "subject")] {
            if object.contains_key(claim) {
                page.error_with(at, format!("`{claim}` has a field of its own"), format!("write `{field}`"));
            }
        }
    }
    object.insert("iss".to_owned(), issuer.value.as_str().into());
    if let Some(subject) = subject {
        object.insert("sub".to_owned(), subject.value.as_str().into());
    }
    if let Some(list) = audiences {
        let list = texts(page, list, "audiences");
        object.insert("aud".to_owned(), list.iter().map(|text| Value::from(&**text)).collect());
    }
    object.entry("exp").or_insert_with(|| u32::MAX.into());
    if let Err(error) = Claims::from_object(object.clone()) {
        page.error(entry.referenced, format!("no token has these claims: {error}"));
        return None;
    }
    Some(ToldToken::Payload(Value::Object(object).to_string().into_bytes()))
}

//! What rules ask of tokens.

use serde_json::Value;

use super::Truth;
use crate::jwt::{ClaimMatch, ClaimTest, ClaimValue, JwtMatch};
use crate::tokens::{Claims, Tokens};
use crate::verdict::{Action, Operation};

/// What is known of the tokens; of opaque bytes nothing ever will be.
pub(crate) fn tokens(operation: Operation<'_>) -> Tokens<'_> {
    match operation {
        Operation::Http { tokens, .. } => tokens,
        Operation::Tcp | Operation::Tls { .. } => Tokens::Unknown,
    }
}

/// Whether one token of the issuer is what the rule asks for.
pub(crate) fn is_there(jwt: &JwtMatch, action: Action, tokens: Tokens<'_>) -> Truth {
    match tokens {
        Tokens::Unknown => Truth::Unknown,
        Tokens::Absent => Truth::False,
        Tokens::Verified(all) => all.iter().any(|claims| matches(jwt, claims, action.is_wide())).into(),
    }
}

/// Whether a token is there that the rule excludes. An Allow excludes a request without any token of the issuer too: a
/// negation never matches what is not there, else leaving the token out would get past it.
pub(crate) fn is_excluded(not: &JwtMatch, action: Action, tokens: Tokens<'_>) -> Truth {
    let all = match tokens {
        Tokens::Unknown => return Truth::Unknown,
        Tokens::Absent => &[],
        Tokens::Verified(all) => all,
    };
    let own: Vec<_> = all.iter().filter(|claims| claims.issuer() == &*not.issuer).collect();
    match (own.is_empty(), action.is_wide()) {
        (true, wide) => (!wide).into(),
        // What is excluded is read the other way round: from a Deny only what certainly matches.
        (false, wide) => own.iter().any(|claims| matches(not, claims, !wide)).into(),
    }
}

fn matches(jwt: &JwtMatch, claims: &Claims, wide: bool) -> bool {
    let JwtMatch { issuer, audiences, subjects, claims: tests } = jwt;
    let audience = match audiences {
        Some(list) => claims.audiences().any(|audience| list.contains(&audience.into())),
        None => true,
    };
    let subject = match (subjects, claims.subject()) {
        (Some(list), Some(subject)) => list.contains(&subject.into()),
        (Some(_), None) => false,
        (None, _) => true,
    };
    claims.issuer() == &**issuer && audience && subject && tests.iter().all(|test| claim(test, claims, wide))
}

/// Whether a claim is what a rule asks for, in the wide or in the narrow reading.
pub(crate) fn claim(entry: &ClaimMatch, claims: &Claims, wide: bool) -> bool {
    let value = match claims.get(&entry.path) {
        None | Some(Value::Null) => None,
        Some(value) => Some(value),
    };
    let values: Vec<&Value> = match value {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(one) => vec![one],
        None => Vec::new(),
    };
    let words: Vec<&str> = match value {
        Some(Value::String(text)) => text.split(' ').collect(),
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let is_list = matches!(value, Some(Value::Array(_)));
    let has_words = matches!(value, Some(Value::Array(_) | Value::String(_)));
    let one_of = |known: &[ClaimValue]| values.iter().any(|value| known.iter().any(|k| k.matches(value)));
    let has = |word: &str| words.contains(&word);
    match &entry.test {
        ClaimTest::Present => value.is_some(),
        ClaimTest::Absent => value.is_none(),
        ClaimTest::Is(known) => (wide || !is_list) && one_of(known),
        ClaimTest::Any(known) => one_of(known),
        ClaimTest::Has(asked) => asked.iter().all(|word| has(word)),
        ClaimTest::Not(known) if wide => is_list || !one_of(known),
        ClaimTest::Not(known) => matches!(value, Some(value) if !value.is_object()) && !one_of(known),
        ClaimTest::Lacks(asked) => (wide || has_words) && !asked.iter().any(|word| has(word)),
    }
}

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
    let items: Vec<&Value> = match value {
        Some(Value::Array(list)) => list.iter().collect(),
        Some(one) => vec![one],
        None => Vec::new(),
    };
    let mut leaves = Vec::new();
    items.iter().for_each(|item| flatten(item, &mut leaves));
    // What an object is meant to be nobody can tell.
    let is_anything = leaves.iter().any(|leaf| leaf.is_object());
    let is_list = matches!(value, Some(Value::Array(_)));
    let has_words = matches!(value, Some(Value::Array(_) | Value::String(_)));
    let certainly = |known: &[ClaimValue], of: &[&Value]| {
        of.iter().any(|value| known.iter().any(|known| known.matches(value, false)))
    };
    let possibly = |known: &[ClaimValue]| {
        is_anything || leaves.iter().any(|value| known.iter().any(|known| known.matches(value, true)))
    };
    let certainly_has = |word: &str| match value {
        Some(Value::String(text)) => text.split(' ').any(|one| one == word),
        _ => items.iter().any(|item| item.as_str() == Some(word)),
    };
    let possibly_has =
        |word: &str| is_anything || leaves.iter().any(|leaf| words(leaf).iter().any(|one| one == word));
    match &entry.test {
        ClaimTest::Present => value.is_some(),
        ClaimTest::Absent => value.is_none(),
        ClaimTest::Is(known) | ClaimTest::Any(known) if wide => possibly(known),
        ClaimTest::Is(known) => !is_list && certainly(known, &items),
        ClaimTest::Any(known) => certainly(known, &items),
        ClaimTest::Has(asked) if wide => asked.iter().all(|word| possibly_has(word)),
        ClaimTest::Has(asked) => asked.iter().all(|word| certainly_has(word)),
        ClaimTest::Not(known) if wide => is_list || !certainly(known, &items),
        ClaimTest::Not(known) => value.is_some() && !possibly(known),
        ClaimTest::Lacks(asked) if wide => !asked.iter().any(|word| certainly_has(word)),
        ClaimTest::Lacks(asked) => has_words && !asked.iter().any(|word| possibly_has(word)),
    }
}

/// What lies in lists within lists.
fn flatten<'v>(value: &'v Value, out: &mut Vec<&'v Value>) {
    match value {
        Value::Array(list) => list.iter().for_each(|item| flatten(item, out)),
        one => out.push(one),
    }
}

/// The words that a value may be written as.
fn words(leaf: &Value) -> Vec<String> {
    match leaf {
        Value::Null | Value::Object(_) | Value::Array(_) => Vec::new(),
        Value::String(text) => text.split(' ').map(str::to_owned).collect(),
        written @ (Value::Bool(_) | Value::Number(_)) => vec![written.to_string()],
    }
}

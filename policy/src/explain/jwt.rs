//! Which demand on tokens failed. A sentence says what the rule asks for, never what a token holds: that is somebody's
//! data.

use super::failures::{Failure, list};
use crate::eval_ref;
use crate::jwt::{ClaimMatch, ClaimTest, JwtMatch};
use crate::rule::Peer;
use crate::tokens::{Claims, Tokens};
use crate::verdict::{Action, Operation};

/// What an alternative's demands on tokens fail for.
pub(super) fn failures(peer: &Peer, operation: Operation<'_>) -> Vec<Failure> {
    let not = peer.not.as_ref().and_then(|not| not.jwt.as_ref());
    let tokens = match operation {
        Operation::Http { tokens, .. } => tokens,
        Operation::Tcp | Operation::Tls { .. } if peer.asks_tokens() => {
            return vec![Failure { what: "opaque TCP carries no token".to_owned(), change: None }];
        }
        Operation::Tcp | Operation::Tls { .. } => return Vec::new(),
    };
    let mut out = peer.jwt.as_ref().map(|jwt| asked(jwt, tokens)).unwrap_or_default();
    if let Some(not) = not
        && eval_ref::jwt::is_excluded(not, Action::Allow, tokens) != eval_ref::Truth::False
    {
        let what = match (tokens, tokens.of(&not.issuer).next()) {
            (Tokens::Unknown, _) => UNVERIFIED.to_owned(),
            (_, None) => missing(not),
            (_, Some(_)) => format!("the token of {} is excluded by `not`", not.issuer),
        };
        let change = Some(format!("call with another token of {}", not.issuer));
        out.push(Failure { what, change });
    }
    out
}

const UNVERIFIED: &str = "the request's token could not be verified: its key is not at hand";

fn missing(jwt: &JwtMatch) -> String {
    format!("the request has no token of {}", jwt.issuer)
}

fn asked(jwt: &JwtMatch, tokens: Tokens<'_>) -> Vec<Failure> {
    if let Tokens::Unknown = tokens {
        let change = Some(format!("look why the keys of {} are not at hand", jwt.issuer));
        return vec![Failure { what: UNVERIFIED.to_owned(), change }];
    }
    let of_each = tokens.of(&jwt.issuer).map(|claims| of_token(jwt, claims));
    of_each.min_by_key(Vec::len).unwrap_or_else(|| {
        vec![Failure { what: missing(jwt), change: Some(format!("call with a token of {}", jwt.issuer)) }]
    })
}

fn of_token(jwt: &JwtMatch, claims: &Claims) -> Vec<Failure> {
    let JwtMatch { issuer: _, audiences, subjects, claims: tests } = jwt;
    let mut out = Vec::new();
    if let Some(names) = audiences
        && !claims.audiences().any(|audience| names.iter().any(|name| **name == *audience))
    {
        out.push(failure("aud", format!("is not for {}", list(names, "", "one of"))));
    }
    if let Some(names) = subjects
        && !claims.subject().is_some_and(|subject| names.iter().any(|name| **name == *subject))
    {
        out.push(failure("sub", format!("is not {}", list(names, "", "one of"))));
    }
    let failed = tests.iter().filter(|test| !eval_ref::jwt::claim(test, claims, false));
    out.extend(failed.map(|test| {
        let is_there = claims.get(&test.path).is_some_and(|value| !value.is_null());
        of_claim(test, is_there)
    }));
    out
}

fn of_claim(test: &ClaimMatch, is_there: bool) -> Failure {
    let name = test.path.as_str();
    match &test.test {
        ClaimTest::Absent => failure(name, "is there".to_owned()),
        _ if !is_there => Failure {
            what: format!("the token has no `{name}`"),
            change: Some(format!("call with a token that has `{name}`")),
        },
        ClaimTest::Present => failure(name, "is missing".to_owned()),
        ClaimTest::Is(values) => failure(name, format!("is not {}", list(values, "", "one of"))),
        ClaimTest::Any(values) => {
            failure(name, format!("is not, and has not in it, {}", list(values, "", "one of")))
        }
        ClaimTest::Has(words) => {
            let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
            failure(name, format!("has no {}", list(&words, "", "all of")))
        }
        ClaimTest::Not(values) => {
            failure(name, format!("is no single value, or is {}", list(values, "", "one of")))
        }
        ClaimTest::Lacks(words) => failure(name, format!("has {}", list(words, "", "one of"))),
    }
}

fn failure(name: &str, what: String) -> Failure {
    Failure {
        what: format!("the token's `{name}` {what}"),
        change: Some(format!("call with a token with another `{name}`")),
    }
}

//! A request's tokens, from where its issuers' tokens stand.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};
use postern_policy::{BadToken, Generation, Issuer, Jwt, OtherTokens, TokenHeader, TokenSet};

use super::keyring::Keyrings;
use super::verify::{Outcome, Unverified};
use crate::observe::metrics::TokenCounts;

/// What was read.
#[derive(Debug, Default)]
pub struct Read {
    /// What the policy is told.
    pub tokens: TokenSet,
    /// Header fields that the workload must not see.
    pub withheld: Vec<HeaderName>,
}

/// Reads and verifies the tokens of a request if `generation` asks for any. An error, in words of our own, if one is there
/// that is none: it is never forwarded, for a workload may trust that the mesh has looked at tokens.
pub fn read(
    generation: &Generation,
    keyrings: &Keyrings,
    counts: &TokenCounts,
    headers: &HeaderMap,
    now: std::time::SystemTime,
) -> Result<Read, &'static str> {
    if !generation.asks_tokens() {
        // Rules that come while the request lives cannot know either.
        return Ok(Read { tokens: TokenSet::unknown(), withheld: Vec::new() });
    }
    let jwt = &generation.defaults().jwt;
    let mut verified = Vec::new();
    let mut withheld = Vec::new();
    let mut is_unknown = false;
    for (name, places) in places(jwt) {
        let Ok(field) = HeaderName::from_bytes(name.as_bytes()) else { continue };
        let Some((header, text)) = only_token(headers, &field, &places).inspect_err(|_| counts.invalid())?
        else {
            continue;
        };
        let issuers = jwt.issuers.iter().filter(|issuer| issuer.header == *header);
        match one(text, issuers, keyrings, now) {
            (Outcome::Verified(claims), issuer) => {
                counts.verified();
                verified.push(claims);
                if issuer.is_some_and(|issuer| !issuer.forward) {
                    withheld.push(field);
                }
            }
            // Other rules may let the request in, but nobody has looked at this: the workload gets the request without.
            (Outcome::NoKey, _) => {
                counts.unknown();
                is_unknown = true;
                withheld.push(field);
            }
            (Outcome::Other(_), _) if jwt.other_tokens == OtherTokens::Ignore => counts.other(),
            (Outcome::Other(why) | Outcome::Invalid(why), _) => {
                counts.invalid();
                return Err(why);
            }
        }
    }
    let tokens = if is_unknown { TokenSet::unknown() } else { TokenSet::verified(verified) };
    Ok(Read { tokens, withheld })
}

fn one<'i>(
    text: &str,
    mut issuers: impl Iterator<Item = &'i Issuer>,
    keyrings: &Keyrings,
    now: std::time::SystemTime,
) -> (Outcome, Option<&'i Issuer>) {
    let token = match Unverified::parse(text) {
        Ok(token) => token,
        Err(outcome) => return (outcome, None),
    };
    let Some(issuer) = issuers.find(|issuer| *issuer.name == *token.issuer()) else {
        return (BadToken::UnknownIssuer.into(), None);
    };
    let ring = keyrings.of(&issuer.keys);
    let keys = ring.as_ref().and_then(|ring| ring.usable(now));
    let outcome = token.verify(issuer, keys.as_deref().map(|kept| &kept.keys), now);
    match (&outcome, &ring) {
        // Keys are exchanged; one more look finds the new one.
        (Outcome::NoKey, Some(ring)) => ring.refresh(),
        (Outcome::NoKey, None) => keyrings.wake(),
        _ => {}
    }
    (outcome, Some(issuer))
}

/// Fields that may hold tokens, each with the prefixes that stand before them there.
fn places(jwt: &Jwt) -> BTreeMap<&str, Vec<&TokenHeader>> {
    let mut out: BTreeMap<&str, Vec<&TokenHeader>> = BTreeMap::new();
    for issuer in jwt.issuers.iter() {
        let known = out.entry(&issuer.header.name).or_default();
        if !known.contains(&&issuer.header) {
            known.push(&issuer.header);
        }
    }
    // Of two prefixes that fit, the longer one is meant.
    out.values_mut().for_each(|places| places.sort_by_key(|place| std::cmp::Reverse(place.prefix.len())));
    out
}

/// The one token of a field, if it holds one. Which of several lines counts is read differently by different servers.
fn only_token<'h, 'p>(
    headers: &'h HeaderMap,
    field: &HeaderName,
    places: &[&'p TokenHeader],
) -> Result<Option<(&'p TokenHeader, &'h str)>, &'static str> {
    let mut found = None;
    let mut lines = 0;
    for value in headers.get_all(field) {
        lines += 1;
        for place in places {
            if let Some(rest) = after_prefix(value.as_bytes(), place.prefix.as_bytes()) {
                let text = std::str::from_utf8(rest).map_err(|_| "no text")?;
                found = Some((*place, text));
                break;
            }
        }
    }
    match found {
        Some(_) if lines > 1 => Err("not the only line of its field"),
        Some((_, "")) => Err("empty"),
        found => Ok(found),
    }
}

/// What stands behind a prefix. Schemes are compared without regard to case (RFC 9110 11.1), and any white space ends
/// one: what a lenient reader would take for a token is looked at as one.
fn after_prefix<'v>(value: &'v [u8], prefix: &[u8]) -> Option<&'v [u8]> {
    let scheme = prefix.trim_ascii_end();
    let (front, rest) = value.trim_ascii().split_at_checked(scheme.len())?;
    if !front.eq_ignore_ascii_case(scheme) {
        return None;
    }
    let needs_space = scheme.len() < prefix.len();
    let is_ended = !needs_space || rest.first().is_none_or(u8::is_ascii_whitespace);
    is_ended.then(|| rest.trim_ascii())
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;

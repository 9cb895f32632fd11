//! The token of a question, held against the issuers that are configured for the workload, as its sidecar would.

use std::sync::Arc;
use std::time::SystemTime;

use super::Refusal;
use crate::generation::Generation;
use crate::issuers::{Issuer, OtherTokens};
use crate::not_asked::NotAsked;
use crate::tokens::{BadClaims, BadToken, Payload, TokenSet};
use crate::yaml::{self, printable};

/// The token that a request carries, as a person tells of it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum ToldToken {
    /// There is none.
    #[default]
    Absent,
    /// There is one whose key is not at hand.
    Unverified,
    /// One with this payload, JSON text, signed as it must be.
    Payload(Vec<u8>),
}

impl ToldToken {
    /// JSON text, or the word `unverified`.
    pub fn parse(text: &str) -> Self {
        match text.trim() {
            "unverified" => Self::Unverified,
            json => Self::Payload(json.as_bytes().to_vec()),
        }
    }
}

/// What the rules are told of the token.
pub(super) fn read(
    generation: &Generation,
    told: &ToldToken,
    at: Option<SystemTime>,
    notes: &mut Vec<String>,
) -> Result<TokenSet, Box<Refusal>> {
    let payload = match told {
        ToldToken::Absent => return Ok(TokenSet::absent()),
        _ if !generation.asks_tokens() => {
            notes.push(
                "no rule that concerns this workload asks for tokens: its sidecar reads none, and passes them on"
                    .to_owned(),
            );
            return Ok(TokenSet::unknown());
        }
        ToldToken::Unverified => return Ok(TokenSet::unknown()),
        ToldToken::Payload(payload) => payload,
    };
    let jwt = &generation.defaults().jwt;
    if jwt.issuers.is_empty() {
        notes
            .push("no issuer of tokens is configured: its sidecar reads none, and passes them on".to_owned());
        return Ok(TokenSet::absent());
    }
    let mut named = None;
    let claims = Payload::parse(payload).and_then(|payload| {
        let named = named.insert(payload.issuer().to_owned());
        let issuer = jwt.issuer(named).ok_or(BadToken::UnknownIssuer)?;
        Ok((payload.claims(issuer, at)?, issuer))
    });
    match claims {
        Ok((claims, issuer)) => {
            notes.push(assumed(issuer, at.is_some()));
            Ok(TokenSet::verified(vec![Arc::new(claims)]))
        }
        Err(bad) if bad.is_other() && jwt.other_tokens == OtherTokens::Ignore => {
            notes.push(format!(
                "the token is {}: it counts as none, and is passed on (`otherTokens: Ignore`)",
                bad.as_str()
            ));
            Ok(TokenSet::absent())
        }
        Err(bad) => {
            let (text, help) = why(bad, named.as_deref(), &jwt.issuers, at);
            Err(Box::new(Refusal { why: NotAsked::TokenInvalid(bad), text, place: None, help: Some(help) }))
        }
    }
}

/// What nobody can tell from claims.
fn assumed(issuer: &Issuer, is_timed: bool) -> String {
    let algorithms: Vec<&str> = issuer.algorithms.iter().map(|algorithm| algorithm.name()).collect();
    let time = if is_timed { "" } else { ", that it is in time, which is not told" };
    format!(
        "taken for granted: that a key of {} signed the token ({}), that it stands alone in the header field `{}`{time}",
        printable(&issuer.name),
        algorithms.join(" or "),
        issuer.header.name,
    )
}

/// What is wrong with a token, and the way out.
fn why(bad: BadToken, named: Option<&str>, issuers: &[Issuer], at: Option<SystemTime>) -> (String, String) {
    let names: Vec<&str> = issuers.iter().map(|issuer| &*issuer.name).collect();
    let issuer = named.and_then(|name| issuers.iter().find(|issuer| *issuer.name == *name));
    let name = printable(named.unwrap_or_default());
    let audiences = issuer.map(|issuer| issuer.audiences.join(", ")).unwrap_or_default();
    let skew = issuer.map_or(0, |issuer| issuer.clock_skew.as_secs());
    let at = at.and_then(|at| jiff::Timestamp::try_from(at).ok());
    let at = at.map_or_else(|| "that time".to_owned(), |at| at.to_string());
    match bad {
        BadToken::NotJwt => {
            ("the token's claims are no JSON object".to_owned(), "write `{\"iss\": …, \"aud\": …, \"exp\": …}`".to_owned())
        }
        BadToken::Duplicate => (
            "a name stands in the token's claims twice: two readers would see two values".to_owned(),
            "leave one of them out".to_owned(),
        ),
        BadToken::TooDeep => (
            "the token's claims are too large, or nested too deeply".to_owned(),
            "a sidecar takes 8 KiB, and 16 objects and lists within each other".to_owned(),
        ),
        BadToken::NoIssuer => (
            "the token names no issuer: the claim `iss` is missing".to_owned(),
            match names.as_slice() {
                [only] => format!("add `iss`: the one issuer that is configured is `{}`", printable(only)),
                several => format!("add `iss`, one of {}", printable(&several.join(", "))),
            },
        ),
        BadToken::UnknownIssuer | BadToken::OtherIssuer => (
            format!("nobody configured the token's issuer (`iss`) `{name}` for this workload"),
            format!("{}; or add it to `jwt.issuers` of MeshDefaults", yaml::suggest(&name, &names)),
        ),
        BadToken::Claims(BadClaims::Missing(claim)) => (
            format!("the token of {name} has no claim `{claim}`, which every token must have"),
            match claim {
                "exp" => "add `exp`, in seconds since 1970".to_owned(),
                claim => format!("add `{claim}`"),
            },
        ),
        BadToken::Claims(error) => {
            (format!("the token of {name}: {error}"), "write it as RFC 7519, 4.1, has it".to_owned())
        }
        BadToken::Expired => (
            format!("the token of {name} has ended: its `exp`, and {skew} s of `clockSkew`, are past at {at}"),
            "call with a newer token; `exp` is in seconds since 1970".to_owned(),
        ),
        BadToken::NotYet => (
            format!("the token of {name} is not valid yet: its `nbf` is more than {skew} s of `clockSkew` after {at}"),
            "call later".to_owned(),
        ),
        BadToken::Future => (
            format!("the token of {name} is from the future: its `iat` is more than {skew} s of `clockSkew` after {at}"),
            "look at the issuer's clock".to_owned(),
        ),
        BadToken::OtherAudience => (
            format!("the token of {name} is for another audience: its `aud` must name one of {audiences}"),
            "call with a token whose `aud` names one of them, or add its audience to `audiences` of the issuer".to_owned(),
        ),
    }
}

//! What a token's payload must say, beside its signature, to be taken. The sidecar asks this of tokens that it has verified,
//! and an explanation of claims that somebody tells.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::{BadClaims, Claims, seconds, strict_object};
use crate::issuers::Issuer;

/// Why something in a token's place is no token that holds, in words that tell nothing of what it says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BadToken {
    /// Header or payload is no JSON object.
    NotJwt,
    /// A name stands twice in an object: two readers would see two tokens.
    Duplicate,
    /// Nested too deeply, or too large.
    TooDeep,
    /// `iss` is missing, or no text.
    NoIssuer,
    /// `iss` is nobody who is configured for the workload.
    UnknownIssuer,
    /// It is somebody else's than the issuer's whose key signed it.
    OtherIssuer,
    /// A registered claim is missing or of a wrong type.
    Claims(BadClaims),
    /// `exp` is past.
    Expired,
    /// `nbf` is to come.
    NotYet,
    /// `iat` is to come.
    Future,
    /// `aud` names none of the audiences for which the issuer is configured.
    OtherAudience,
}

impl BadToken {
    /// What is wrong, as logs say it: a token that is …
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotJwt => "no JWT",
            Self::Duplicate => "a name stands in it twice",
            Self::TooDeep => "nested too deeply",
            Self::NoIssuer => "without issuer",
            Self::UnknownIssuer => "of an issuer that is not configured",
            Self::OtherIssuer => "of another issuer",
            Self::Claims(_) => "without claims that it must have, or with such of a wrong type",
            Self::Expired => "expired",
            Self::NotYet => "not yet valid",
            Self::Future => "issued in the future",
            Self::OtherAudience => "for another audience",
        }
    }

    /// Whether it may be a token of somebody else's, which `otherTokens: Ignore` lets pass as none.
    pub fn is_other(self) -> bool {
        match self {
            Self::NotJwt | Self::NoIssuer | Self::UnknownIssuer => true,
            Self::Duplicate
            | Self::TooDeep
            | Self::OtherIssuer
            | Self::Claims(_)
            | Self::Expired
            | Self::NotYet
            | Self::Future
            | Self::OtherAudience => false,
        }
    }

    /// What makes an object of a token none.
    pub fn of_object(bad: BadClaims) -> Self {
        match bad {
            BadClaims::Duplicate => Self::Duplicate,
            BadClaims::TooLarge => Self::TooDeep,
            BadClaims::NotJson | BadClaims::Missing(_) | BadClaims::Type(_) => Self::NotJwt,
        }
    }
}

/// A token's payload, of which nothing but its form is known yet.
#[derive(Clone, PartialEq)]
pub struct Payload {
    object: Map<String, Value>,
    issuer: Box<str>,
}

impl Payload {
    /// Reads it: a JSON object in which no name stands twice, with `iss`.
    pub fn parse(text: &[u8]) -> Result<Self, BadToken> {
        let object = strict_object(text).map_err(BadToken::of_object)?;
        let issuer = object.get("iss").and_then(Value::as_str).ok_or(BadToken::NoIssuer)?.into();
        Ok(Self { object, issuer })
    }

    /// `iss`, on the token's word.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The claims, if they hold as a token of `issuer` at `now`. `None`: the time is not known, and is not held against
    /// them. That the issuer signed them is the caller's to know.
    pub fn claims(self, issuer: &Issuer, now: Option<SystemTime>) -> Result<Claims, BadToken> {
        let claims = Claims::from_object(self.object).map_err(BadToken::Claims)?;
        if claims.issuer() != &*issuer.name {
            return Err(BadToken::OtherIssuer);
        }
        if let Some(now) = now.map(seconds) {
            let skew = i64::try_from(issuer.clock_skew.as_secs()).unwrap_or(0);
            if claims.expires().saturating_add(skew) <= now {
                return Err(BadToken::Expired);
            }
            let is_to_come = |start: i64| start > now.saturating_add(skew);
            if claims.not_before().is_some_and(is_to_come) {
                return Err(BadToken::NotYet);
            }
            if claims.issued_at().is_some_and(is_to_come) {
                return Err(BadToken::Future);
            }
        }
        let is_for_us = issuer.audiences.is_empty()
            || claims.audiences().any(|audience| issuer.audiences.iter().any(|own| **own == *audience));
        if !is_for_us {
            return Err(BadToken::OtherAudience);
        }
        Ok(claims.with_skew(issuer.clock_skew))
    }
}

/// Claims are somebody's data: they go into no log.
impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Payload").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

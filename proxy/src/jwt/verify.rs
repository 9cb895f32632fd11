//! One token: its form, its issuer, its signature, its time. Pure.

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_policy::{Algorithm, BadToken, Claims, Issuer, MAX_PAYLOAD, Payload, strict_object};

use super::jwk::KeySet;

/// A token larger than this is refused.
const MAX_TOKEN: usize = 8 * 1024;
/// A token's header larger than this is refused: it holds an algorithm and the id of a key.
const MAX_HEADER: usize = 2 * 1024;

/// What a token turned out to be.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is what it says.
    Verified(Arc<Claims>),
    /// A key that its issuer may well have is not at hand.
    NoKey,
    /// It is no JWT, or of an issuer that is not read here.
    Other(&'static str),
    /// It is none, for good.
    Invalid(&'static str),
}

impl From<BadToken> for Outcome {
    fn from(bad: BadToken) -> Self {
        if bad.is_other() { Self::Other(bad.as_str()) } else { Self::Invalid(bad.as_str()) }
    }
}

/// What was found in a token before any key is asked.
pub(super) struct Unverified<'t> {
    /// What is signed: header, dot, payload.
    message: &'t [u8],
    signature: Vec<u8>,
    algorithm: Option<Algorithm>,
    key_id: Option<String>,
    has_crit: bool,
    payload: Payload,
}

impl<'t> Unverified<'t> {
    /// Takes a compact JWS (RFC 7515 7.1) apart.
    pub(super) fn parse(token: &'t str) -> Result<Self, Outcome> {
        if token.len() > MAX_TOKEN {
            return Err(Outcome::Invalid("larger than 8 KiB"));
        }
        let no_jwt = || Outcome::from(BadToken::NotJwt);
        let (message, signature) = token.rsplit_once('.').ok_or_else(no_jwt)?;
        let (header, payload) = message.split_once('.').ok_or_else(no_jwt)?;
        if payload.contains('.') {
            return Err(no_jwt());
        }
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| no_jwt());
        let (header, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);
        if header.len() > MAX_HEADER || payload.len() > MAX_PAYLOAD {
            return Err(Outcome::Invalid("larger than it may be"));
        }
        let header = strict_object(&header).map_err(BadToken::of_object)?;
        let algorithm = header.get("alg").and_then(|name| name.as_str()).ok_or_else(no_jwt)?;
        let algorithm = Algorithm::parse(algorithm);
        let key_id = match header.get("kid") {
            None => None,
            Some(id) => Some(id.as_str().ok_or(Outcome::Invalid("`kid` is no text"))?.to_owned()),
        };
        let payload = Payload::parse(&payload)?;
        Ok(Self {
            message: message.as_bytes(),
            signature,
            algorithm,
            key_id,
            has_crit: header.contains_key("crit"),
            payload,
        })
    }

    /// `iss`, on the token's word.
    pub(super) fn issuer(&self) -> &str {
        self.payload.issuer()
    }

    /// Verifies it as a token of `issuer`, whose keys are at hand or not.
    pub(super) fn verify(self, issuer: &Issuer, keys: Option<&KeySet>, now: SystemTime) -> Outcome {
        let Self { message, signature, algorithm, key_id, has_crit, payload } = self;
        debug_assert_eq!(*issuer.name, *payload.issuer());
        let Some(algorithm) = algorithm.filter(|algorithm| issuer.algorithms.contains(algorithm)) else {
            return Outcome::Invalid("signed with an algorithm that its issuer does not use");
        };
        // Nothing that an extension could ask for is done here (RFC 7515 4.1.11).
        if has_crit {
            return Outcome::Invalid("with critical extensions");
        }
        let Some(keys) = keys.filter(|keys| keys.has(key_id.as_deref())) else { return Outcome::NoKey };
        if !keys.verifies(key_id.as_deref(), algorithm, message, &signature) {
            return Outcome::Invalid("the signature does not fit");
        }
        match payload.claims(issuer, Some(now)) {
            Ok(claims) => Outcome::Verified(Arc::new(claims)),
            Err(bad) => bad.into(),
        }
    }
}

#[cfg(test)]
#[path = "verify_tests.rs"]
pub(in crate::jwt) mod tests;

//! Tokens (JWT, RFC 7519, as compact JWS, RFC 7515): form, signature, time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::NoProof;
use super::json;
use super::jwk::{Algorithm, KeySet};

/// A longer token is none.
pub const MAX_TOKEN: usize = 8 * 1024;
/// A header holds an algorithm and the name of a key.
const MAX_HEADER: usize = 2 * 1024;
/// How far clocks may differ where a token says when it begins.
const SKEW: u64 = 60;

/// A token that says this of itself; nobody has signed it yet, as far as is known.
pub(super) struct Unverified<'t> {
    /// What is signed: header, dot, payload.
    message: &'t [u8],
    signature: Vec<u8>,
    algorithm: Algorithm,
    key: String,
    claims: Map<String, Value>,
}

impl<'t> Unverified<'t> {
    /// Takes it apart.
    pub(super) fn parse(token: &'t str) -> Result<Self, NoProof> {
        if token.len() > MAX_TOKEN {
            return Err("the token is longer than 8 KiB".into());
        }
        let no_jwt = "no token: it is not three parts of base64url, parted by dots";
        let (message, signature) = token.rsplit_once('.').ok_or(no_jwt)?;
        let (header, payload) = message.split_once('.').ok_or(no_jwt)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| NoProof::from(no_jwt));
        let (header, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);
        if header.len() > MAX_HEADER {
            return Err("the token's header is longer than 2 KiB".into());
        }
        let header = json::object(&header).map_err(|why| format!("the token's header: {why}"))?;
        let claims = json::object(&payload).map_err(|why| format!("the token's claims: {why}"))?;
        // Nothing that an extension could ask for is done here (RFC 7515 4.1.11).
        if header.contains_key("crit") {
            return Err("the token's header has critical extensions".into());
        }
        let algorithm = header.get("alg").and_then(Value::as_str).and_then(Algorithm::parse);
        let algorithm = algorithm.ok_or("the token is not signed by RS256 or ES256")?;
        let key = header.get("kid").and_then(Value::as_str).ok_or("the token names no key (`kid`)")?;
        let key = key.to_owned();
        Ok(Self { message: message.as_bytes(), signature, algorithm, key, claims })
    }

    /// `iss`, on the token's word.
    pub(super) fn issuer(&self) -> Result<&str, NoProof> {
        Ok(text(&self.claims, "iss")?)
    }

    /// Whether these keys have the one that it names.
    pub(super) fn is_by(&self, keys: &KeySet) -> bool {
        keys.has(&self.key)
    }

    /// Its claims, if one of these keys has signed it, it is for `audience`, and it is in its time, which is no longer than
    /// `life`.
    pub(super) fn verify(
        self,
        keys: &KeySet,
        audience: &str,
        life: Duration,
        now: SystemTime,
    ) -> Result<Map<String, Value>, NoProof> {
        let Self { message, signature, algorithm, key, claims } = self;
        if !keys.verifies(&key, algorithm, message, &signature) {
            return Err("the token's signature does not fit".into());
        }
        let is_ours = match claims.get("aud") {
            Some(Value::String(one)) => one == audience,
            Some(Value::Array(all)) => all.iter().any(|one| one.as_str() == Some(audience)),
            _ => false,
        };
        if !is_ours {
            return Err(format!("the token is not for {audience}").into());
        }
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let expires = date(&claims, "exp")?.ok_or("the token has no end (`exp`)")?;
        let issued = date(&claims, "iat")?.ok_or("the token does not say when it was made (`iat`)")?;
        let begins = date(&claims, "nbf")?.unwrap_or(issued);
        if expires <= now {
            return Err(format!("the token ended {} s ago", now - expires).into());
        }
        if begins.max(issued) > now + SKEW {
            return Err(format!(
                "the token begins in {} s; does the clock here, or there, go wrong?",
                begins.max(issued) - now
            )
            .into());
        }
        let whole = expires.saturating_sub(issued);
        if whole > life.as_secs() {
            return Err(
                format!("the token lives for {whole} s; at most {} s are taken", life.as_secs()).into()
            );
        }
        Ok(claims)
    }
}

/// A claim that is a text with something in it.
pub(super) fn text<'c>(claims: &'c Map<String, Value>, name: &str) -> Result<&'c str, String> {
    let found = claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    found.ok_or_else(|| format!("the token's claim `{name}` is missing, or no text"))
}

/// A NumericDate (RFC 7519 2): seconds since 1970, possibly with a fraction.
fn date(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, NoProof> {
    // A number beyond this is no time.
    const LATEST: f64 = 253_402_300_800.0;
    match claims.get(name).map(Value::as_f64) {
        None => Ok(None),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within bounds")]
        Some(Some(seconds)) if (0.0..LATEST).contains(&seconds) => Ok(Some(seconds.floor() as u64)),
        Some(_) => Err(format!("the token's claim `{name}` is no time").into()),
    }
}

//! One token: its form, its key, its signature, its audience, its time. Pure.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::keys::Algorithm;
use super::object;
use crate::{Bundles, SpiffeId};

/// A token larger than this is refused before any of it is read.
pub const MAX_TOKEN: usize = 8 * 1_024;
/// How far clocks may differ: a token is taken so long after its end and before its begin. Machines with NTP were seen to be
/// off by up to half a minute.
pub const LEEWAY: Duration = Duration::from_secs(30);
/// Values of `aud`: more than one is discouraged, for each audience can show the token to the others (JWT-SVID, 6.2).
const MAX_AUDIENCES: usize = 16;

/// A token that is what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtSvid {
    /// Whose it is.
    pub id: SpiffeId,
    /// All its claims.
    pub claims: Map<String, Value>,
}

/// Verifies `token` as one that is meant for `audience`, by the keys of its subject's trust domain and no other's.
pub fn verify(token: &str, audience: &str, bundles: &Bundles, now: SystemTime) -> Result<JwtSvid, JwtError> {
    if token.len() > MAX_TOKEN {
        return Err(JwtError::TooLong);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(JwtError::Form("not three parts"))?;
    let (header, payload) = message.split_once('.').ok_or(JwtError::Form("not three parts"))?;
    if payload.contains('.') {
        return Err(JwtError::Form("not three parts"));
    }
    let decode =
        |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| JwtError::Form("a part is not base64url"));
    let (header, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);

    let header = Header::parse(&header)?;
    let claims =
        object(&payload).ok_or(JwtError::Form("its payload is no JSON object with each name once"))?;
    let id = claims.get("sub").and_then(Value::as_str).ok_or(JwtError::Claim("sub"))?;
    let id = SpiffeId::parse(id).map_err(|_| JwtError::Claim("sub"))?;
    let bundle = bundles.of_id(&id).ok_or(JwtError::TrustDomain)?;
    let key = bundle.jwt_keys().find(&header.key_id).ok_or(JwtError::UnknownKey)?;
    if !key.verifies(header.algorithm, message.as_bytes(), &signature) {
        return Err(JwtError::Signature);
    }

    if !audiences(&claims)?.contains(&audience) {
        return Err(JwtError::Audience);
    }
    check_times(&claims, now)?;
    Ok(JwtSvid { id, claims })
}

struct Header {
    algorithm: Algorithm,
    key_id: String,
}

impl Header {
    /// `alg`, `kid` and `typ`, and nothing else: "any header not described here MUST NOT be included" (JWT-SVID, 2). So no
    /// `crit`, and no key and no place of a key that the token brings along.
    fn parse(text: &[u8]) -> Result<Self, JwtError> {
        let header =
            object(text).ok_or(JwtError::Form("its header is no JSON object with each name once"))?;
        if header.keys().any(|name| !matches!(name.as_str(), "alg" | "kid" | "typ")) {
            return Err(JwtError::Header("it has another field than alg, kid and typ"));
        }
        let text = |name: &str| match header.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(JwtError::Header("a field of it is no text")),
        };
        let algorithm = text("alg")?.ok_or(JwtError::Header("it names no algorithm"))?;
        let algorithm = Algorithm::parse(algorithm)
            .ok_or(JwtError::Header("its algorithm is none of RS, ES and PS with 256, 384 and 512"))?;
        if text("typ")?.is_some_and(|kind| kind != "JWT" && kind != "JOSE") {
            return Err(JwtError::Header("its typ is neither JWT nor JOSE"));
        }
        // The standard leaves it open. Without it every key would be tried, and each try costs.
        let key_id = text("kid")?.ok_or(JwtError::Header("it names no key (kid)"))?;
        Ok(Self { algorithm, key_id: key_id.to_owned() })
    }
}

fn audiences(claims: &Map<String, Value>) -> Result<Vec<&str>, JwtError> {
    let audiences = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(several)) if several.len() <= MAX_AUDIENCES => {
            several.iter().map(|one| one.as_str().ok_or(JwtError::Claim("aud"))).collect::<Result<_, _>>()?
        }
        _ => return Err(JwtError::Claim("aud")),
    };
    if audiences.is_empty() { Err(JwtError::Claim("aud")) } else { Ok(audiences) }
}

fn check_times(claims: &Map<String, Value>, now: SystemTime) -> Result<(), JwtError> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let leeway = LEEWAY.as_secs_f64();
    // A NumericDate may have a fraction (RFC 7519, 2).
    let time = |name| match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_f64().filter(|at| at.is_finite()).map(Some).ok_or(JwtError::Claim(name)),
    };
    let end = time("exp")?.ok_or(JwtError::Claim("exp"))?;
    if now > end + leeway {
        return Err(JwtError::Expired);
    }
    // One that was made tomorrow was made by another clock than ours, and nothing says when it ends.
    for name in ["nbf", "iat"] {
        if time(name)?.is_some_and(|begin| begin > now + leeway) {
            return Err(JwtError::NotYetValid);
        }
    }
    Ok(())
}

/// Why a token is not taken for what it says. No text repeats anything of the token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum JwtError {
    /// It is for others.
    Audience,
    /// A claim is missing or of another shape.
    Claim(&'static str),
    /// It has ended.
    Expired,
    /// It is no signed token in compact form.
    Form(&'static str),
    /// Its header is not one of a JWT-SVID.
    Header(&'static str),
    /// Its begin lies in the future.
    NotYetValid,
    /// Its key did not sign it.
    Signature,
    /// Larger than 8 KiB.
    TooLong,
    /// There is no bundle of its subject's trust domain.
    TrustDomain,
    /// Its subject's trust domain has no such key.
    UnknownKey,
}

impl fmt::Display for JwtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Audience => f.write_str("the token is meant for another audience (aud)"),
            Self::Claim("sub") => f.write_str("the token's sub is no SPIFFE id of a workload"),
            Self::Claim(name) => {
                write!(f, "the token's {name} is missing, or of another shape than RFC 7519 has")
            }
            Self::Expired => f.write_str("the token has expired"),
            Self::Form(why) => write!(f, "not a signed JWT in compact form: {why}"),
            Self::Header(why) => write!(f, "the token's header is not one of a JWT-SVID: {why}"),
            Self::NotYetValid => {
                f.write_str("the token's begin (nbf, iat) lies in the future; compare the clocks")
            }
            Self::Signature => f.write_str("the token is not signed by the key that it names"),
            Self::TooLong => write!(f, "the token is larger than {} KiB", MAX_TOKEN / 1_024),
            Self::TrustDomain => f.write_str("no bundle of the trust domain of the token's subject is here"),
            Self::UnknownKey => {
                f.write_str("the trust domain of the token's subject has no key of this id (kid)")
            }
        }
    }
}

impl std::error::Error for JwtError {}

//! The keys that a trust domain signs JWT-SVIDs with, as a JWK set (RFC 7517) has them.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, EcdsaVerificationAlgorithm,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::object;

/// Rotation needs two. Other implementations keep one for each replica and restart.
const MAX_KEYS: usize = 32;
/// Of a JWK set.
const MAX_SET: usize = 64 * 1_024;
/// Of a key's id.
const MAX_ID: usize = 256;
/// Bytes of an RSA modulus, from 2,048 to 8,192 bits.
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1_024;

/// A key and its id.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct JwtKey {
    id: String,
    public: Public,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Public {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// The uncompressed point.
    Ec(Curve, Vec<u8>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    const ALL: [Self; 3] = [Self::P256, Self::P384, Self::P521];

    const fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// Bytes of a coordinate.
    const fn length(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    const fn parameters(self) -> &'static EcdsaVerificationAlgorithm {
        match self {
            Self::P256 => &ECDSA_P256_SHA256_FIXED,
            Self::P384 => &ECDSA_P384_SHA384_FIXED,
            Self::P521 => &ECDSA_P521_SHA512_FIXED,
        }
    }
}

impl JwtKey {
    /// A P-256 key by its uncompressed point, for ES256.
    pub fn p256(id: String, point: &[u8]) -> Result<Self, JwtKeysError> {
        let public = ec(Curve::P256, point.to_vec())?;
        Ok(Self { id: checked_id(id)?, public })
    }

    /// The id that tokens name it by.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Reads a JWK. `Ok(None)` if it is of a kind that is not known here, which readers of sets pass over (RFC 7517, 5).
    pub(crate) fn from_jwk(jwk: &Map<String, Value>) -> Result<Option<Self>, JwtKeysError> {
        let text = |name: &'static str| jwk.get(name).and_then(Value::as_str);
        let kind = text("kty").ok_or(JwtKeysError::Missing("kty"))?;
        let curve = match kind {
            "RSA" => None,
            "EC" => {
                let name = text("crv").ok_or(JwtKeysError::Missing("crv"))?;
                match Curve::ALL.into_iter().find(|curve| curve.name() == name) {
                    Some(curve) => Some(curve),
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        let id = text("kid").ok_or(JwtKeysError::Missing("kid"))?;
        let bytes = |name: &'static str| {
            let text = text(name).ok_or(JwtKeysError::Missing(name))?;
            URL_SAFE_NO_PAD.decode(text).map_err(|_| JwtKeysError::Unfit("a number of it is not base64url"))
        };
        let public = match curve {
            None => {
                // Some write zeros in front.
                let number = |name| bytes(name).map(|number| trimmed(&number).to_vec());
                let (n, e) = (number("n")?, number("e")?);
                if !MODULUS.contains(&n.len()) || e.is_empty() || e.len() > 4 {
                    return Err(JwtKeysError::Unfit(
                        "RSA keys have 2,048 to 8,192 bits and a small exponent",
                    ));
                }
                Public::Rsa { n, e }
            }
            Some(curve) => {
                let (x, y) = (bytes("x")?, bytes("y")?);
                if x.len() != curve.length() || y.len() != curve.length() {
                    return Err(JwtKeysError::Unfit("a coordinate has another length than its curve's"));
                }
                ec(curve, [&[4], &*x, &*y].concat())?
            }
        };
        Ok(Some(Self { id: checked_id(id.to_owned())?, public }))
    }

    /// As a JWK, with `use` if it is given.
    pub(crate) fn to_jwk(&self, usage: Option<&str>) -> Value {
        let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = match &self.public {
            Public::Rsa { n, e } => json!({"kty": "RSA", "n": encoded(n), "e": encoded(e)}),
            Public::Ec(curve, point) => {
                let (x, y) = point[1..].split_at(curve.length());
                json!({"kty": "EC", "crv": curve.name(), "x": encoded(x), "y": encoded(y)})
            }
        };
        jwk["kid"] = Value::from(self.id.as_str());
        if let Some(usage) = usage {
            jwk["use"] = Value::from(usage);
        }
        jwk
    }

    /// Whether this key made the signature. False if the algorithm is not one for a key of its kind: an algorithm is never
    /// taken on the token's word alone.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        match (&self.public, algorithm) {
            (Public::Rsa { n, e }, Algorithm::Rsa(parameters)) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            (Public::Ec(curve, point), Algorithm::Ec(wanted)) if *curve == wanted.0 => {
                UnparsedPublicKey::new(curve.parameters(), point).verify(message, signature).is_ok()
            }
            (Public::Rsa { .. } | Public::Ec(..), _) => false,
        }
    }
}

/// What a token may be signed with.
#[derive(Clone, Copy)]
pub(super) enum Algorithm {
    Rsa(&'static RsaParameters),
    Ec(Wanted),
}

/// The curve of an algorithm.
#[derive(Clone, Copy)]
pub(super) struct Wanted(Curve);

impl Algorithm {
    /// The nine of the standard (JWT-SVID, 2.1), none of them symmetric.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rsa(&RSA_PKCS1_2048_8192_SHA256),
            "RS384" => Self::Rsa(&RSA_PKCS1_2048_8192_SHA384),
            "RS512" => Self::Rsa(&RSA_PKCS1_2048_8192_SHA512),
            "PS256" => Self::Rsa(&RSA_PSS_2048_8192_SHA256),
            "PS384" => Self::Rsa(&RSA_PSS_2048_8192_SHA384),
            "PS512" => Self::Rsa(&RSA_PSS_2048_8192_SHA512),
            "ES256" => Self::Ec(Wanted(Curve::P256)),
            "ES384" => Self::Ec(Wanted(Curve::P384)),
            "ES512" => Self::Ec(Wanted(Curve::P521)),
            _ => return None,
        })
    }
}

/// A point that lies on its curve.
fn ec(curve: Curve, point: Vec<u8>) -> Result<Public, JwtKeysError> {
    if point.len() != 1 + 2 * curve.length() || point[0] != 4 {
        return Err(JwtKeysError::Unfit("its point is not an uncompressed one of its curve"));
    }
    match ParsedPublicKey::new(curve.parameters(), &point) {
        Ok(_) => Ok(Public::Ec(curve, point)),
        Err(_) => Err(JwtKeysError::Unfit("its point is not on its curve")),
    }
}

fn trimmed(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

fn checked_id(id: String) -> Result<String, JwtKeysError> {
    if id.is_empty() || id.len() > MAX_ID || id.contains(char::is_control) {
        return Err(JwtKeysError::Unfit("its `kid` is empty, longer than 256 bytes or no plain text"));
    }
    Ok(id)
}

/// The JWT keys of one trust domain: at most 32, each id once, in order of their ids. Cloning shares them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct JwtKeys(Arc<Vec<JwtKey>>);

impl JwtKeys {
    /// A set of these keys.
    pub fn new(mut keys: Vec<JwtKey>) -> Result<Self, JwtKeysError> {
        if keys.len() > MAX_KEYS {
            return Err(JwtKeysError::TooMany(keys.len()));
        }
        keys.sort_by(|a, b| a.id.cmp(&b.id));
        if keys.windows(2).any(|pair| pair[0].id == pair[1].id) {
            return Err(JwtKeysError::Twice);
        }
        Ok(Self(Arc::new(keys)))
    }

    /// Reads a JWK set. Keys of a kind that is not known here are passed over; one that is known and broken refuses all, for
    /// its tokens would be missed where it counts.
    pub fn from_jwks(text: &[u8]) -> Result<Self, JwtKeysError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > MAX_SET {
            return Err(JwtKeysError::TooLong);
        }
        let set = object(text).ok_or(JwtKeysError::NotASet)?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or(JwtKeysError::NotASet)?;
        let known = keys.iter().filter_map(|key| match key.as_object() {
            Some(key) => JwtKey::from_jwk(key).transpose(),
            None => Some(Err(JwtKeysError::NotASet)),
        });
        Self::new(known.collect::<Result<_, _>>()?)
    }

    /// As a JWK set, the same for the same keys. Without `use`: that is for bundle documents, and libraries that look for keys
    /// of signatures pass over a `use` that they do not know.
    pub fn to_jwks(&self) -> String {
        let keys: Vec<Value> = self.0.iter().map(|key| key.to_jwk(None)).collect();
        json!({ "keys": keys }).to_string()
    }

    /// The key with this id.
    pub fn find(&self, id: &str) -> Option<&JwtKey> {
        self.0.iter().find(|key| key.id == id)
    }

    /// All keys, by their ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &JwtKey> {
        self.0.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why bytes are no set of JWT keys.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum JwtKeysError {
    /// A member of a key is missing or no text.
    Missing(&'static str),
    /// Not a JSON object with an array `keys` of objects.
    NotASet,
    /// Longer than 64 KiB.
    TooLong,
    /// More than 32 keys.
    TooMany(usize),
    /// Two keys have one id.
    Twice,
    /// A key that cannot be one.
    Unfit(&'static str),
}

impl fmt::Display for JwtKeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name) => write!(f, "a JWT key lacks `{name}`"),
            Self::NotASet => {
                f.write_str("the JWT keys are no JWK set (RFC 7517): an object with an array `keys`")
            }
            Self::TooLong => write!(f, "the JWT keys take more than {} KiB", MAX_SET / 1_024),
            Self::TooMany(count) => write!(f, "{count} JWT keys; at most {MAX_KEYS} are taken"),
            Self::Twice => f.write_str("two JWT keys have the same `kid`"),
            Self::Unfit(why) => write!(f, "a JWT key is unfit: {why}"),
        }
    }
}

impl std::error::Error for JwtKeysError {}

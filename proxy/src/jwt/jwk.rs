//! JWK sets (RFC 7517) and signatures (RFC 7518).

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    EcdsaVerificationAlgorithm, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_policy::Algorithm;
use serde::Deserialize;

/// A set larger than this is none of an issuer's.
pub(super) const MAX_SET: usize = 256 * 1024;
/// A token without `kid` is tried with each key that fits.
const MAX_KEYS: usize = 64;

/// An issuer's public keys.
#[derive(Debug)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// The only algorithm that the key says it is for.
    algorithm: Option<Algorithm>,
    public: Public,
}

#[derive(Debug)]
enum Public {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// The uncompressed point.
    Ec(Curve, Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Curve {
    P256,
    P384,
    P521,
}

#[derive(Deserialize)]
struct SetDoc {
    keys: Vec<KeyDoc>,
}

/// Members that are not known are none of ours (RFC 7517 4).
#[derive(Deserialize)]
struct KeyDoc {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// The keys of a set that signatures can be checked with; others are skipped (RFC 7517 5). An error if none is left.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        if text.len() > MAX_SET {
            return Err(format!("the set of keys is larger than {} KiB", MAX_SET >> 10));
        }
        // The library's own sentence could repeat what stands there.
        let set: SetDoc = serde_json::from_slice(text)
            .map_err(|error| format!("no JWK set (line {}, column {})", error.line(), error.column()))?;
        let count = set.keys.len();
        if count > MAX_KEYS {
            return Err(format!("the set has {count} keys; at most {MAX_KEYS} are taken"));
        }
        let keys: Vec<Key> = set.keys.into_iter().filter_map(Key::of).collect();
        match keys.is_empty() {
            true => Err(format!(
                "none of the {count} keys of the set checks signatures of an algorithm known here"
            )),
            false => Ok(Self(keys)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether some key has this id; without an id, some key may be meant.
    pub(super) fn has(&self, id: Option<&str>) -> bool {
        id.is_none_or(|id| self.0.iter().any(|key| key.id.as_deref() == Some(id)))
    }

    /// Whether one of the keys with this id, of the algorithm's own kind, made the signature.
    pub(super) fn verifies(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let named = self.0.iter().filter(|key| id.is_none() || key.id.as_deref() == id);
        named
            .filter(|key| key.algorithm.is_none_or(|own| own == algorithm))
            .any(|key| key.public.verifies(algorithm, message, signature))
    }
}

impl Key {
    fn of(doc: KeyDoc) -> Option<Self> {
        let KeyDoc { kty, kid, alg, usage, key_ops, crv, n, e, x, y } = doc;
        if usage.is_some_and(|usage| usage != "sig")
            || key_ops.is_some_and(|all| !all.iter().any(|operation| operation == "verify"))
        {
            return None;
        }
        let algorithm = match alg {
            Some(name) => Some(Algorithm::parse(&name)?),
            None => None,
        };
        let bytes = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
        let public = match (kty.as_str(), crv.as_deref()) {
            ("RSA", _) => Public::Rsa { n: number(bytes(n)?)?, e: number(bytes(e)?)? },
            ("EC", Some(name)) => {
                let (curve, length) = match name {
                    "P-256" => (Curve::P256, 32),
                    "P-384" => (Curve::P384, 48),
                    "P-521" => (Curve::P521, 66),
                    _ => return None,
                };
                let (x, y) = (bytes(x)?, bytes(y)?);
                if x.len() != length || y.len() != length {
                    return None;
                }
                Public::Ec(curve, [&[4], &*x, &*y].concat())
            }
            ("OKP", Some("Ed25519")) => Public::Ed25519(bytes(x).filter(|x| x.len() == 32)?),
            _ => return None,
        };
        Some(Self { id: kid, algorithm, public })
    }
}

/// A whole number without zeros in front, which some issuers write.
fn number(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    (zeros < bytes.len()).then(|| bytes[zeros..].to_vec())
}

impl Public {
    /// False if the algorithm is of another kind than the key: an algorithm is never taken on the token's word alone.
    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let rsa = |parameters: &RsaParameters| match self {
            Self::Rsa { n, e } => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            Self::Ec(..) | Self::Ed25519(_) => false,
        };
        let ec = |wanted: Curve, parameters: &'static EcdsaVerificationAlgorithm| match self {
            Self::Ec(curve, point) if *curve == wanted => {
                UnparsedPublicKey::new(parameters, point).verify(message, signature).is_ok()
            }
            Self::Ec(..) | Self::Rsa { .. } | Self::Ed25519(_) => false,
        };
        match algorithm {
            Algorithm::RS256 => rsa(&RSA_PKCS1_2048_8192_SHA256),
            Algorithm::RS384 => rsa(&RSA_PKCS1_2048_8192_SHA384),
            Algorithm::RS512 => rsa(&RSA_PKCS1_2048_8192_SHA512),
            Algorithm::PS256 => rsa(&RSA_PSS_2048_8192_SHA256),
            Algorithm::PS384 => rsa(&RSA_PSS_2048_8192_SHA384),
            Algorithm::PS512 => rsa(&RSA_PSS_2048_8192_SHA512),
            Algorithm::ES256 => ec(Curve::P256, &ECDSA_P256_SHA256_FIXED),
            Algorithm::ES384 => ec(Curve::P384, &ECDSA_P384_SHA384_FIXED),
            Algorithm::ES512 => ec(Curve::P521, &ECDSA_P521_SHA512_FIXED),
            Algorithm::EdDSA => match self {
                Self::Ed25519(key) => {
                    UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
                }
                Self::Rsa { .. } | Self::Ec(..) => false,
            },
        }
    }
}

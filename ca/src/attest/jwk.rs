//! The public keys of who issues tokens: a JWK set (RFC 7517), and signatures by them (RFC 7518).

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// A set larger than this is none.
const MAX_SET: usize = 256 * 1024;
/// Keys of a set; issuers have two or three at a time.
const MAX_KEYS: usize = 64;

/// The algorithms that are taken: what clusters and OIDC providers sign with. Never `none`, never with a shared secret.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Algorithm {
    Rs256,
    Es256,
}

impl Algorithm {
    pub(super) fn parse(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            _ => None,
        }
    }
}

/// An issuer's public keys.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeySet(Vec<Key>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct Key {
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
    P256(Vec<u8>),
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
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// The keys of a set that are used here: with an id, for signatures, RSA or P-256. An error if none is left.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
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
        if keys.is_empty() {
            return Err(format!(
                "none of the {count} keys is for signatures by RS256 or ES256 and has a `kid`"
            ));
        }
        Ok(Self(keys))
    }

    /// Whether some key has this id.
    pub(super) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id == id)
    }

    /// Whether a key with this id, of the algorithm's own kind, made the signature.
    pub(super) fn verifies(&self, id: &str, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let mut named = self.0.iter().filter(|key| key.id == id);
        // An algorithm is never taken on the token's word alone.
        named.any(|key| match (&key.public, algorithm) {
            (Public::Rsa { n, e }, Algorithm::Rs256) => RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
            (Public::P256(point), Algorithm::Es256) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }
            (Public::Rsa { .. } | Public::P256(_), _) => false,
        })
    }
}

impl Key {
    fn of(doc: KeyDoc) -> Option<Self> {
        let KeyDoc { kty, kid, alg, usage, crv, n, e, x, y } = doc;
        if usage.is_some_and(|usage| usage != "sig") {
            return None;
        }
        let bytes = |text: Option<String>| URL_SAFE_NO_PAD.decode(text?).ok();
        let (public, algorithm) = match (kty.as_str(), crv.as_deref()) {
            ("RSA", _) => (Public::Rsa { n: number(bytes(n)?)?, e: number(bytes(e)?)? }, Algorithm::Rs256),
            ("EC", Some("P-256")) => {
                let (x, y) = (bytes(x)?, bytes(y)?);
                let is_whole = x.len() == 32 && y.len() == 32;
                (Public::P256(is_whole.then(|| [&[4], &*x, &*y].concat())?), Algorithm::Es256)
            }
            _ => return None,
        };
        let is_ours = alg.is_none_or(|alg| Algorithm::parse(&alg) == Some(algorithm));
        Some(Self { id: kid.filter(|_| is_ours)?, public })
    }
}

/// A whole number without zeros in front, which some issuers write.
fn number(bytes: Vec<u8>) -> Option<Vec<u8>> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    (zeros < bytes.len()).then(|| bytes[zeros..].to_vec())
}

//! Bundles as trust domains hand them to one another: SPIFFE bundle documents (SPIFFE Trust Domain and Bundle, 4).

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use serde_json::{Map, Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::bundle::{Bundle, BundleError};
use crate::TrustDomain;
use crate::jwt::{JwtKey, JwtKeys, JwtKeysError, object};

/// Larger than that of any trust domain that takes its roots out again.
const MAX_DOCUMENT: usize = 64 * 1_024;
const MAX_KEYS: usize = 64;
const X509: &str = "x509-svid";
const JWT: &str = "jwt-svid";

/// A bundle document as it was read.
#[derive(Clone, Debug)]
pub struct Document {
    /// The bundle; its sequence is 0 if the document names none.
    pub bundle: Bundle,
    /// Whether the document has a sequence.
    pub has_sequence: bool,
    /// How often its trust domain wants it to be read again.
    pub refresh_hint: Option<Duration>,
}

impl Document {
    /// The largest document that is read.
    pub const MAX: usize = MAX_DOCUMENT;

    /// Reads the bundle of `trust_domain`; the document itself does not say whose it is. Keys of an unknown use or type are
    /// passed over, as the standard wants; one without `use`, or one that is known and broken, refuses the document.
    pub fn parse(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, DocumentError> {
        if text.len() > MAX_DOCUMENT {
            return Err(DocumentError::TooLong);
        }
        let document = object(text).ok_or(DocumentError::NotJson)?;
        let whole = |name: &'static str| match document.get(name) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or(DocumentError::NoNumber(name)),
        };
        let (sequence, hint) = (whole("spiffe_sequence")?, whole("spiffe_refresh_hint")?);
        let keys = document.get("keys").and_then(Value::as_array).ok_or(DocumentError::NoKeys)?;
        if keys.len() > MAX_KEYS {
            return Err(DocumentError::TooManyKeys(keys.len()));
        }
        let (mut roots, mut jwt) = (Vec::new(), Vec::new());
        for (index, key) in keys.iter().enumerate() {
            let key = key.as_object().ok_or(DocumentError::NoKeys)?;
            match key.get("use").and_then(Value::as_str) {
                Some(X509) => roots.extend(root(key, index)?),
                Some(JWT) => {
                    jwt.extend(JwtKey::from_jwk(key).map_err(DocumentError::Jwt)?);
                }
                Some(_) => {}
                None => return Err(DocumentError::Key { index, what: "it has no `use`" }),
            }
        }
        let jwt = JwtKeys::new(jwt).map_err(DocumentError::Jwt)?;
        let bundle =
            Bundle::new(trust_domain, sequence.unwrap_or(0), roots).map_err(DocumentError::Bundle)?;
        Ok(Self {
            bundle: bundle.with_jwt_keys(jwt),
            has_sequence: sequence.is_some(),
            refresh_hint: hint.map(Duration::from_secs),
        })
    }

    /// The document of `bundle`: roots as `x509-svid` with one `x5c` and no `kid`, JWT keys as `jwt-svid` with one.
    pub fn of(bundle: &Bundle, refresh_hint: Duration) -> String {
        let roots = bundle.roots().iter().map(|root| {
            let mut jwk = public_key(root);
            jwk["use"] = Value::from(X509);
            jwk["x5c"] = json!([STANDARD.encode(root)]);
            jwk
        });
        let jwt = bundle.jwt_keys().iter().map(|key| key.to_jwk(Some(JWT)));
        let keys: Vec<Value> = roots.chain(jwt).collect();
        json!({
            "keys": keys,
            "spiffe_sequence": bundle.sequence(),
            "spiffe_refresh_hint": refresh_hint.as_secs(),
        })
        .to_string()
    }
}

/// The certificate of a key for X.509-SVIDs: exactly one.
fn root(key: &Map<String, Value>, index: usize) -> Result<Option<CertificateDer<'static>>, DocumentError> {
    let wrong = |what| DocumentError::Key { index, what };
    match key.get("kty").and_then(Value::as_str) {
        Some("EC" | "RSA" | "OKP") => {}
        Some(_) => return Ok(None),
        None => return Err(wrong("it has no `kty`")),
    }
    let Some([Value::String(one)]) = key.get("x5c").and_then(Value::as_array).map(Vec::as_slice) else {
        return Err(wrong("`x5c` does not hold exactly one certificate"));
    };
    let der = STANDARD.decode(one).map_err(|_| wrong("its certificate is not base64"))?;
    Ok(Some(CertificateDer::from(der)))
}

/// The key of a root as a JWK. Readers take it out of the certificate; the members have to be there all the same.
fn public_key(root: &CertificateDer<'_>) -> Value {
    let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    // A root has passed the check of its bundle: an uncompressed point, or an Ed25519 key.
    let key = X509Certificate::from_der(root)
        .map(|(_, parsed)| parsed.public_key().subject_public_key.data.to_vec());
    let key = key.unwrap_or_default();
    match key.as_slice() {
        [4, point @ ..] if point.len() == 64 || point.len() == 96 => {
            let (x, y) = point.split_at(point.len() / 2);
            let curve = if x.len() == 32 { "P-256" } else { "P-384" };
            json!({"kty": "EC", "crv": curve, "x": encoded(x), "y": encoded(y)})
        }
        key => json!({"kty": "OKP", "crv": "Ed25519", "x": encoded(key)}),
    }
}

/// Why bytes are no bundle document.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum DocumentError {
    /// Its roots make no bundle.
    Bundle(BundleError),
    /// A JWT key of it.
    Jwt(JwtKeysError),
    /// Another key of it.
    Key {
        /// Its place, from 0.
        index: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Without an array `keys` of objects.
    NoKeys,
    /// Something else where a whole number belongs.
    NoNumber(&'static str),
    /// No JSON object, or a name stands twice in it.
    NotJson,
    /// Longer than 64 KiB.
    TooLong,
    /// More than 64 keys.
    TooManyKeys(usize),
}

impl fmt::Display for DocumentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bundle document: ")?;
        match self {
            Self::Bundle(error) => error.fmt(f),
            Self::Jwt(error) => error.fmt(f),
            Self::Key { index, what } => write!(f, "key {} is unfit: {what}", index + 1),
            Self::NoKeys => f.write_str("it has no array `keys` of objects"),
            Self::NoNumber(name) => write!(f, "`{name}` is no whole number from 0 to 2^64"),
            Self::NotJson => f.write_str("no JSON object with each name once"),
            Self::TooLong => write!(f, "longer than {} KiB", MAX_DOCUMENT / 1_024),
            Self::TooManyKeys(count) => write!(f, "{count} keys; at most {MAX_KEYS} are read"),
        }
    }
}

impl std::error::Error for DocumentError {}

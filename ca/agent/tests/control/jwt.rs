//! The control plane's JWT key, and tokens by it.

use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_svid::Clock as _;
use postern_svid::jwt::{JwtKey, JwtKeys};
use serde_json::{Value, json};

use super::Ca;

/// The life of a token.
pub(crate) const TOKEN: Duration = Duration::from_secs(60);

/// A key that signs tokens.
pub(crate) struct Signer {
    pub(crate) id: &'static str,
    key: EcdsaKeyPair,
}

impl Signer {
    pub(crate) fn new(id: &'static str) -> Self {
        Self { id, key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap() }
    }

    pub(crate) fn jwks(&self) -> String {
        let key = JwtKey::p256(self.id.to_owned(), self.key.public_key().as_ref()).unwrap();
        JwtKeys::new(vec![key]).unwrap().to_jwks()
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encoded(&json!({"alg": "ES256", "kid": self.id})), encoded(claims));
        let signature = self.key.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl Ca {
    pub(crate) fn token(&self, id: &str, audience: &[String]) -> (String, i64) {
        let now = self.clock.wall().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let end = now + TOKEN.as_secs();
        let claims =
            json!({"sub": id, "aud": audience, "exp": end, "iat": now, "nested": {"a": [true, null, 1]}});
        (self.jwt.lock().sign(&claims), i64::try_from(end * 1_000).unwrap())
    }
}

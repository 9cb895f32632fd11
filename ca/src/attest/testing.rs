//! An issuer of tokens with a key of each kind.

use std::time::UNIX_EPOCH;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512,
    RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};

use super::KeySet;
use crate::testing::start;

pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
pub(crate) const AUDIENCE: &str = "postern:td";

/// Its keys.
pub(crate) struct Keys {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let rsa = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { rsa, ec }
    }

    fn jwks(&self) -> String {
        // PKCS#1: SEQUENCE { INTEGER n, INTEGER e }, n with a zero in front.
        let der = self.rsa.public_key().as_ref();
        let point = self.ec.public_key().as_ref();
        json!({"keys": [
            {"kty": "RSA", "kid": "r", "alg": "RS256", "use": "sig",
             "n": BASE64.encode(&der[8..265]), "e": BASE64.encode([1, 0, 1])},
            {"kty": "EC", "kid": "e", "crv": "P-256", "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..])},
            {"kty": "oct", "kid": "s", "k": "c2VjcmV0"},
        ]})
        .to_string()
    }

    pub(crate) fn set(&self) -> KeySet {
        KeySet::parse(self.jwks().as_bytes()).unwrap()
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let rsa = |padding| {
            let mut out = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(padding, &random, message, &mut out).unwrap();
            out
        };
        match algorithm {
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "RS512" => rsa(&RSA_PKCS1_SHA512),
            "ES256" => self.ec.sign(&random, message).unwrap().as_ref().to_vec(),
            // The public key taken for a shared secret.
            "HS256" => {
                let secret = hmac::Key::new(hmac::HMAC_SHA256, self.rsa.public_key().as_ref());
                hmac::sign(&secret, message).as_ref().to_vec()
            }
            _ => Vec::new(),
        }
    }

    pub(crate) fn raw(&self, header: &str, payload: &str) -> String {
        let header_value: Value = serde_json::from_str(header).unwrap_or_default();
        let algorithm = header_value["alg"].as_str().unwrap_or("RS256").to_owned();
        let message = format!("{}.{}", BASE64.encode(header), BASE64.encode(payload));
        format!("{message}.{}", BASE64.encode(self.sign(&algorithm, message.as_bytes())))
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.raw(r#"{"alg":"RS256","kid":"r"}"#, &claims.to_string())
    }
}

pub(crate) fn now() -> u64 {
    start().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// As an API server of 1.35 makes them.
pub(crate) fn claims(namespace: &str, account: &str) -> Value {
    json!({
        "aud": [AUDIENCE], "exp": now() + 3_600, "iat": now(), "nbf": now(), "iss": ISSUER,
        "jti": "0f2a6b1c-4c8e-4f39-9d55-0f7f2ac3a5d1", "sub": format!("system:serviceaccount:{namespace}:{account}"),
        "kubernetes.io": {
            "namespace": namespace,
            "node": {"name": "node-1", "uid": "3d9e4b6a-5e0f-4a77-8a53-d0d3f3b9a1f0"},
            "pod": {"name": "orders-7d4b9c", "uid": "9b1c7e52-0a50-4f0c-b0c9-0a8f2f7f0c11"},
            "serviceaccount": {"name": account, "uid": "5a1b2c3d-1111-2222-3333-444455556666"},
        },
    })
}

use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
};
use aws_lc_rs::{digest, hmac};
use postern_policy::{KeySource, TokenHeader};
use serde_json::{Value, json};

use super::*;

/// Signers of every kind of key, and the set of their public halves.
pub(in crate::jwt) struct Signers {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

pub(in crate::jwt) static SIGNERS: LazyLock<Signers> = LazyLock::new(|| Signers {
    rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
    p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
    p384: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
    ed: Ed25519KeyPair::generate().unwrap(),
});

pub(in crate::jwt) const NOW: u64 = 1_000_000;

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signers {
    fn modulus(&self) -> Vec<u8> {
        // An RSAPublicKey (RFC 8017 A.1.1): two headers of four bytes, a zero, the modulus, the exponent.
        self.rsa.public_key().as_ref()[9..9 + 256].to_vec()
    }

    pub(in crate::jwt) fn set(&self) -> Value {
        let ec = |key: &EcdsaKeyPair, curve: &str, kid: &str| {
            let point = key.public_key().as_ref();
            let half = point.len() / 2;
            json!({"kty": "EC", "crv": curve, "kid": kid, "x": b64(&point[1..=half]), "y": b64(&point[half + 1..])})
        };
        let e = [1, 0, 1];
        json!({"keys": [
            {"kty": "RSA", "kid": "rsa", "use": "sig", "n": b64(self.modulus()), "e": b64(e)},
            ec(&self.p256, "P-256", "p256"),
            ec(&self.p384, "P-384", "p384"),
            {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": b64(self.ed.public_key().as_ref())},
            {"kty": "oct", "kid": "secret", "k": "c2VjcmV0"},
            {"kty": "RSA", "kid": "enc", "use": "enc", "n": b64(self.modulus()), "e": b64(e)},
            {"kty": "EC", "crv": "secp256k1", "kid": "coin", "x": "AA", "y": "AA"},
        ]})
    }

    pub(in crate::jwt) fn keys(&self) -> KeySet {
        KeySet::parse(self.set().to_string().as_bytes()).unwrap()
    }

    fn rsa(&self, encoding: &'static dyn RsaEncoding, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.rsa.public_modulus_len()];
        self.rsa.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
        signature
    }

    /// Signs what is asked, whatever the header says.
    pub(in crate::jwt) fn sign(&self, how: &str, header: &Value, claims: &str) -> String {
        let message = format!("{}.{}", b64(header.to_string()), b64(claims));
        let bytes = message.as_bytes();
        let signature = match how {
            "RS256" => self.rsa(&RSA_PKCS1_SHA256, bytes),
            "PS256" => self.rsa(&RSA_PSS_SHA256, bytes),
            "ES256" => self.p256.sign(&SystemRandom::new(), bytes).unwrap().as_ref().to_vec(),
            "ES384" => self.p384.sign(&SystemRandom::new(), bytes).unwrap().as_ref().to_vec(),
            "EdDSA" => self.ed.sign(bytes).as_ref().to_vec(),
            // The classic: the public key's own text taken for a shared secret.
            "HS256" => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.modulus()), bytes).as_ref().to_vec()
            }
            "sha" => digest::digest(&digest::SHA256, bytes).as_ref().to_vec(),
            _ => Vec::new(),
        };
        format!("{message}.{}", b64(signature))
    }
}

pub(in crate::jwt) fn issuer(algorithms: &[Algorithm]) -> Issuer {
    Issuer {
        name: "https://id.example.com".into(),
        audiences: ["orders".into(), "web".into()].into(),
        algorithms: algorithms.into(),
        keys: KeySource::Inline("".into()),
        clock_skew: Duration::from_secs(30),
        header: TokenHeader::default(),
        forward: true,
    }
}

pub(in crate::jwt) fn claims(more: &Value) -> String {
    let mut object = json!({"iss": "https://id.example.com", "aud": "orders", "sub": "ann", "exp": NOW + 60});
    for (name, value) in more.as_object().unwrap() {
        match value {
            Value::Null => drop(object.as_object_mut().unwrap().remove(name)),
            value => object[name] = value.clone(),
        }
    }
    object.to_string()
}

const ALL: [Algorithm; 5] =
    [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::ES384, Algorithm::EdDSA];

fn outcome(token: &str, algorithms: &[Algorithm], keys: Option<&KeySet>) -> String {
    let outcome = match Unverified::parse(token) {
        Ok(token) => token.verify(&issuer(algorithms), keys, UNIX_EPOCH + Duration::from_secs(NOW)),
        Err(outcome) => outcome,
    };
    match outcome {
        Outcome::Verified(claims) => format!("verified {}", claims.subject().unwrap_or("-")),
        Outcome::NoKey => "no key".to_owned(),
        Outcome::Other(why) => format!("other: {why}"),
        Outcome::Invalid(why) => format!("invalid: {why}"),
    }
}

#[test]
fn algorithms_and_keys() {
    let keys = SIGNERS.keys();
    assert_eq!(keys.len(), 4, "keys that are for something else are skipped");
    let good = claims(&json!({}));
    for (signed, header, allowed, expected) in [
        ("RS256", json!({"alg": "RS256", "kid": "rsa"}), &ALL[..], "verified ann"),
        ("PS256", json!({"alg": "PS256", "kid": "rsa"}), &ALL, "verified ann"),
        ("ES256", json!({"alg": "ES256", "kid": "p256", "typ": "JWT"}), &ALL, "verified ann"),
        ("ES384", json!({"alg": "ES384", "kid": "p384"}), &ALL, "verified ann"),
        ("EdDSA", json!({"alg": "EdDSA", "kid": "ed"}), &ALL, "verified ann"),
        // Without `kid` each key of the algorithm's kind is tried.
        ("ES256", json!({"alg": "ES256"}), &ALL, "verified ann"),
        // An algorithm that the issuer does not use, however good the signature.
        ("EdDSA", json!({"alg": "EdDSA", "kid": "ed"}), &ALL[..1], "invalid: signed with an algorithm"),
        ("none", json!({"alg": "none"}), &ALL, "invalid: signed with an algorithm"),
        ("none", json!({"alg": "None", "kid": "rsa"}), &ALL, "invalid: signed with an algorithm"),
        ("none", json!({"alg": "", "kid": "rsa"}), &ALL, "invalid: signed with an algorithm"),
        // The RSA key as a shared secret, under its own name and under a lie.
        ("HS256", json!({"alg": "HS256", "kid": "rsa"}), &ALL, "invalid: signed with an algorithm"),
        ("HS256", json!({"alg": "RS256", "kid": "rsa"}), &ALL, "invalid: the signature"),
        ("HS256", json!({"alg": "HS256", "kid": "secret"}), &ALL, "invalid: signed with an algorithm"),
        // One key's signature under another's name, kind or curve.
        ("RS256", json!({"alg": "PS256", "kid": "rsa"}), &ALL, "invalid: the signature"),
        ("RS256", json!({"alg": "RS256", "kid": "p256"}), &ALL, "invalid: the signature"),
        ("ES256", json!({"alg": "ES256", "kid": "p384"}), &ALL, "invalid: the signature"),
        ("ES256", json!({"alg": "ES384", "kid": "p256"}), &ALL, "invalid: the signature"),
        ("EdDSA", json!({"alg": "ES256", "kid": "ed"}), &ALL, "invalid: the signature"),
        ("sha", json!({"alg": "EdDSA", "kid": "ed"}), &ALL, "invalid: the signature"),
        ("none", json!({"alg": "RS256", "kid": "rsa"}), &ALL, "invalid: the signature"),
        // A key that is not there, and one that is for something else.
        ("RS256", json!({"alg": "RS256", "kid": "next"}), &ALL, "no key"),
        ("RS256", json!({"alg": "RS256", "kid": "enc"}), &ALL, "no key"),
        ("RS256", json!({"alg": "RS256", "kid": ""}), &ALL, "no key"),
        ("RS256", json!({"alg": "RS256", "kid": 7}), &ALL, "invalid: `kid`"),
        (
            "RS256",
            json!({"alg": "RS256", "kid": "rsa", "crit": ["b64"], "b64": false}),
            &ALL,
            "invalid: with critical",
        ),
        ("RS256", json!({"alg": "RS256", "kid": "rsa", "crit": []}), &ALL, "invalid: with critical"),
        // Keys in a token are the token's word for itself.
        (
            "RS256",
            json!({"alg": "RS256", "kid": "rsa", "jwk": {"kty": "oct"}, "jku": "https://evil/"}),
            &ALL,
            "verified ann",
        ),
        ("RS256", json!({"kid": "rsa"}), &ALL, "other: no JWT"),
    ] {
        let found = outcome(&SIGNERS.sign(signed, &header, &good), allowed, Some(&keys));
        assert!(found.starts_with(expected), "{signed} {header}: {found}");
    }
    let token = SIGNERS.sign("RS256", &json!({"alg": "RS256", "kid": "rsa"}), &good);
    assert_eq!(outcome(&token, &ALL, None), "no key");
    // A key that names its algorithm serves no other.
    let mut set = SIGNERS.set();
    set["keys"][0]["alg"] = json!("PS256");
    let bound = KeySet::parse(set.to_string().as_bytes()).unwrap();
    assert_eq!(outcome(&token, &ALL, Some(&bound)), "invalid: the signature does not fit");
}

#[test]
fn claims_in_time_and_for_us() {
    let keys = SIGNERS.keys();
    for (more, expected) in [
        (json!({"aud": ["x", "orders"]}), "verified ann"),
        (json!({"aud": "web"}), "verified ann"),
        (json!({"aud": "Orders"}), "invalid: for another audience"),
        (json!({"aud": ["x"]}), "invalid: for another audience"),
        (json!({"aud": []}), "invalid: for another audience"),
        (json!({"aud": null}), "invalid: for another audience"),
        (json!({"aud": {"orders": 1}}), "invalid: without claims"),
        (json!({"exp": NOW - 29}), "verified ann"),
        (json!({"exp": NOW - 30}), "invalid: expired"),
        (json!({"exp": 0}), "invalid: expired"),
        (json!({"exp": null}), "invalid: without claims"),
        (json!({"exp": "1000060"}), "invalid: without claims"),
        (json!({"nbf": NOW + 30}), "verified ann"),
        (json!({"nbf": NOW + 31}), "invalid: not yet valid"),
        (json!({"iat": NOW + 31}), "invalid: issued in the future"),
        (json!({"iat": NOW, "nbf": NOW}), "verified ann"),
        (json!({"sub": null}), "verified -"),
        (json!({"sub": 7}), "invalid: without claims"),
        (json!({"iss": null}), "other: without issuer"),
        (json!({"iss": 7}), "other: without issuer"),
    ] {
        let token = SIGNERS.sign("ES256", &json!({"alg": "ES256", "kid": "p256"}), &claims(&more));
        assert_eq!(outcome(&token, &ALL, Some(&keys)).split(" that").next(), Some(expected), "{more}");
    }
}

#[test]
fn an_issuer_without_audiences_takes_tokens_for_anybody() {
    let keys = SIGNERS.keys();
    let anybody = Issuer { audiences: Box::default(), ..issuer(&ALL) };
    for more in [json!({"aud": "x"}), json!({"aud": null})] {
        let token = SIGNERS.sign("ES256", &json!({"alg": "ES256", "kid": "p256"}), &claims(&more));
        let Ok(token) = Unverified::parse(&token) else { panic!("{more}") };
        let outcome = token.verify(&anybody, Some(&keys), UNIX_EPOCH + Duration::from_secs(NOW));
        assert!(matches!(outcome, Outcome::Verified(_)), "{more}");
    }
}

#[test]
fn forms() {
    let keys = SIGNERS.keys();
    let header = json!({"alg": "ES256", "kid": "p256"});
    let good = SIGNERS.sign("ES256", &header, &claims(&json!({})));
    let twice = claims(&json!({})).replacen('{', "{\"sub\":\"bob\",", 1);
    let twice = SIGNERS.sign("ES256", &header, &twice);
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (head, payload) = message.split_once('.').unwrap();
    let two_algorithms = b64(r#"{"alg":"none","alg":"ES256"}"#);
    let deep = format!("{{\"iss\":\"i\",\"a\":{}{}}}", "[".repeat(40), "]".repeat(40));
    // The last character of base64 holds bits that no byte has: another spelling of the same token is another token.
    let last = signature.pop_last();
    for (token, expected) in [
        (String::new(), "other: no JWT"),
        ("opaque".to_owned(), "other: no JWT"),
        (format!("{head}.{payload}"), "other: no JWT"),
        (format!("{good}.{payload}.x"), "other: no JWT"),
        (format!("{head}.{payload}."), "invalid: the signature"),
        (format!("{good}="), "other: no JWT"),
        (format!(" {good}"), "other: no JWT"),
        (format!("{good}, {good}"), "other: no JWT"),
        (format!("{message}.{last}"), "other: no JWT"),
        (format!("{two_algorithms}.{payload}.{signature}"), "invalid: a name stands in it twice"),
        (twice, "invalid: a name stands in it twice"),
        (SIGNERS.sign("ES256", &header, &deep), "invalid: nested too deeply"),
        (format!("{good}{}", "A".repeat(8 * 1024)), "invalid: larger than 8 KiB"),
        (SIGNERS.sign("ES256", &json!({"alg": "ES256", "x": "y".repeat(2 * 1024)}), "{}"), "invalid: larger"),
        (SIGNERS.sign("ES256", &header, "[]"), "other: no JWT"),
    ] {
        let found = outcome(&token, &ALL, Some(&keys));
        assert!(found.starts_with(expected), "{token:.80}: {found}");
    }
    // Each byte of it counts.
    for at in [0, head.len() + 3, message.len() + 5] {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let found = outcome(&String::from_utf8(bytes).unwrap(), &ALL, Some(&keys));
        assert!(!found.starts_with("verified"), "{at}: {found}");
    }
}

trait PopLast {
    fn pop_last(&self) -> String;
}

impl PopLast for str {
    /// With other unused bits in the last character, of which a signature of 64 bytes has four.
    fn pop_last(&self) -> String {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let (front, last) = self.split_at(self.len() - 1);
        let value = ALPHABET.iter().position(|byte| *byte == last.as_bytes()[0]).unwrap();
        format!("{front}{}", char::from(ALPHABET[value ^ 1]))
    }
}

#[test]
fn sets_of_keys() {
    for (text, expected) in [
        ("", "no JWK set"),
        ("{}", "no JWK set"),
        (r#"{"keys": []}"#, "none of the 0 keys"),
        (r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#, "none of the 1 keys"),
        (r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}"#, "none of the 1 keys"),
        (r#"{"keys": [{"kty": "RSA", "n": "AA", "e": "AQAB"}]}"#, "none of the 1 keys"),
    ] {
        let found = KeySet::parse(text.as_bytes()).map(|_| ()).unwrap_err();
        assert!(found.starts_with(expected), "{text}: {found}");
    }
    let many = format!(r#"{{"keys": [{}]}}"#, vec![r#"{"kty": "oct"}"#; 65].join(","));
    assert!(KeySet::parse(many.as_bytes()).unwrap_err().contains("at most 64"));
    let large = format!(r#"{{"keys": [], "x": "{}"}}"#, "x".repeat(256 * 1024));
    assert!(KeySet::parse(large.as_bytes()).unwrap_err().contains("256 KiB"));
}

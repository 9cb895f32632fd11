//! JWT-SVIDs and bundle documents: what is taken, what is refused, and why.
#![allow(clippy::unwrap_used, reason = "tests")]

mod pki;

use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA512, RsaEncoding,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use pki::{ID, Pki, now, td};
use postern_svid::jwt::{JwtError, JwtKey, JwtKeys, JwtKeysError, LEEWAY, MAX_TOKEN, verify};
use postern_svid::{Bundle, BundleError, Bundles, Document, DocumentError, TrustDomain};
use serde_json::{Value, json};

const AUDIENCE: &str = "spiffe://demo.postern/ns/shop/sa/reports";

fn seconds() -> u64 {
    now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn claims() -> Value {
    json!({"sub": ID, "aud": [AUDIENCE], "exp": seconds() + 60, "iat": seconds()})
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "one", "typ": "JWT"})
}

/// A key that signs, of P-256 unless told otherwise.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        Self::of(&ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    fn of(algorithm: &'static EcdsaSigningAlgorithm) -> Self {
        Self(EcdsaKeyPair::generate(algorithm).unwrap())
    }

    fn key(&self, id: &str) -> JwtKey {
        JwtKey::p256(id.to_owned(), self.0.public_key().as_ref()).unwrap()
    }

    fn raw(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", encoded(header), encoded(claims));
        let signature = self.0.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encoded(signature))
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        self.raw(&header.to_string(), &claims.to_string())
    }
}

fn bundle(td: TrustDomain, keys: Vec<JwtKey>) -> Bundle {
    let mut pki = Pki::new();
    pki.root = pki::root_params(&td);
    Bundle::new(td, 7, vec![pki.root_der()]).unwrap().with_jwt_keys(JwtKeys::new(keys).unwrap())
}

fn jwks(keys: &Value) -> Result<JwtKeys, JwtKeysError> {
    JwtKeys::from_jwks(json!({ "keys": keys }).to_string().as_bytes())
}

fn check(token: &str, bundles: &Bundles) -> Result<(), JwtError> {
    verify(token, AUDIENCE, bundles, now()).map(|svid| assert_eq!(svid.id.as_str(), ID))
}

#[test]
fn a_token_is_taken_for_what_it_says() {
    let signer = Signer::new();
    let bundles = Bundles::of(bundle(td(), vec![signer.key("one"), Signer::new().key("two")]));
    let token = signer.token(&header(), &claims());
    let svid = verify(&token, AUDIENCE, &bundles, now()).unwrap();
    assert_eq!((svid.id.as_str(), Value::Object(svid.claims)), (ID, claims()));

    // What the standard leaves open.
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        check(&signer.token(&header(), &claims), &bundles)
    };
    assert_eq!(with("aud", json!(AUDIENCE)), Ok(()));
    assert_eq!(with("aud", json!(["another", AUDIENCE])), Ok(()), "one of several (JWT-SVID, 3.2)");
    assert_eq!(with("private", json!({"a": [1, null]})), Ok(()));
    assert_eq!(with("exp", json!(seconds() as f64 - 0.5)), Ok(()));
    assert_eq!(with("exp", json!(seconds() - LEEWAY.as_secs())), Ok(()));
    assert_eq!(with("nbf", json!(seconds() + LEEWAY.as_secs())), Ok(()));
    for header in
        [json!({"alg": "ES256", "kid": "one"}), json!({"alg": "ES256", "kid": "one", "typ": "JOSE"})]
    {
        assert_eq!(check(&signer.token(&header, &claims()), &bundles), Ok(()), "{header}");
    }

    // And what it does not.
    for (name, value, error) in [
        ("aud", json!("reports"), JwtError::Audience),
        ("aud", json!([]), JwtError::Claim("aud")),
        ("aud", json!([AUDIENCE, 1]), JwtError::Claim("aud")),
        ("aud", json!(vec![AUDIENCE; 17]), JwtError::Claim("aud")),
        ("aud", Value::Null, JwtError::Claim("aud")),
        ("exp", Value::Null, JwtError::Claim("exp")),
        ("exp", json!((seconds() + 60).to_string()), JwtError::Claim("exp")),
        ("exp", json!(seconds() - LEEWAY.as_secs() - 1), JwtError::Expired),
        ("exp", json!(-1), JwtError::Expired),
        ("nbf", json!(seconds() + LEEWAY.as_secs() + 1), JwtError::NotYetValid),
        ("iat", json!(seconds() + 86_400), JwtError::NotYetValid),
        ("iat", json!("now"), JwtError::Claim("iat")),
        ("sub", Value::Null, JwtError::Claim("sub")),
        ("sub", json!("spiffe://demo.postern"), JwtError::Claim("sub")),
        ("sub", json!("orders"), JwtError::Claim("sub")),
        ("sub", json!("spiffe://other.postern/ns/shop/sa/orders"), JwtError::TrustDomain),
    ] {
        assert_eq!(with(name, value.clone()), Err(error), "{name}: {value}");
    }
    let without = |name: &str| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        check(&signer.token(&header(), &claims), &bundles)
    };
    for name in ["sub", "aud", "exp"] {
        assert_eq!(without(name), Err(JwtError::Claim(name)));
    }
    assert_eq!(without("iat"), Ok(()));
}

#[test]
fn nothing_that_a_header_asks_for_is_done() {
    let signer = Signer::new();
    let bundles = Bundles::of(bundle(td(), vec![signer.key("one")]));
    let with = |header: Value| check(&signer.token(&header, &claims()), &bundles);
    for (header, says) in [
        (json!({"alg": "none", "kid": "one"}), "algorithm"),
        (json!({"alg": "HS256", "kid": "one"}), "algorithm"),
        (json!({"alg": "EdDSA", "kid": "one"}), "algorithm"),
        (json!({"alg": "es256", "kid": "one"}), "algorithm"),
        (json!({"kid": "one"}), "algorithm"),
        (json!({"alg": ["ES256"], "kid": "one"}), "no text"),
        (json!({"alg": "ES256"}), "names no key"),
        (json!({"alg": "ES256", "kid": 1}), "no text"),
        (json!({"alg": "ES256", "kid": "one", "typ": "at+jwt"}), "typ"),
        (json!({"alg": "ES256", "kid": "one", "crit": ["exp"]}), "another field"),
        (json!({"alg": "ES256", "kid": "one", "jwk": {}}), "another field"),
        (json!({"alg": "ES256", "kid": "one", "x5u": "https://evil.example"}), "another field"),
    ] {
        let error = with(header.clone()).unwrap_err();
        assert!(
            matches!(error, JwtError::Header(_)) && error.to_string().contains(says),
            "{header}: {error}"
        );
    }
    for (header, error) in [
        (json!({"alg": "ES256", "kid": "two"}), JwtError::UnknownKey),
        (json!({"alg": "ES256", "kid": ""}), JwtError::UnknownKey),
        // The right key, under an algorithm of another kind of key.
        (json!({"alg": "RS256", "kid": "one"}), JwtError::Signature),
        (json!({"alg": "ES384", "kid": "one"}), JwtError::Signature),
    ] {
        assert_eq!(with(header.clone()), Err(error), "{header}");
    }

    // Signed with the public key as if it were a shared secret.
    let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, signer.0.public_key().as_ref());
    let message = format!(
        "{}.{}",
        encoded(json!({"alg": "HS256", "kid": "one"}).to_string()),
        encoded(claims().to_string())
    );
    let forged = format!("{message}.{}", encoded(aws_lc_rs::hmac::sign(&secret, message.as_bytes())));
    assert!(matches!(check(&forged, &bundles), Err(JwtError::Header(_))));
}

#[test]
fn what_is_no_token_is_refused_by_its_form() {
    let signer = Signer::new();
    let bundles = Bundles::of(bundle(td(), vec![signer.key("one")]));
    let token = signer.token(&header(), &claims());
    let parts: Vec<&str> = token.split('.').collect();
    let twice = format!(
        "{{\"sub\":\"{ID}\",\"aud\":\"{AUDIENCE}\",\"aud\":\"{AUDIENCE}\",\"exp\":{}}}",
        seconds() + 9
    );
    for bad in [
        String::new(),
        "...".to_owned(),
        parts[..2].join("."),
        format!("{token}."),
        format!("{token}.{}", parts[2]),
        format!("{}=.{}.{}", parts[0], parts[1], parts[2]),
        format!(" {token}"),
        token.replace('.', ".."),
        signer.raw(&header().to_string(), &twice),
        signer.raw("[]", &claims().to_string()),
        signer.raw(r#"{"alg":"ES256","alg":"ES256","kid":"one"}"#, &claims().to_string()),
        signer.raw(&header().to_string(), "null"),
        signer.raw(&header().to_string(), &"[".repeat(4_000)),
    ] {
        assert!(matches!(check(&bad, &bundles), Err(JwtError::Form(_))), "{bad}");
    }
    assert_eq!(check(&format!("{}.{}.", parts[0], parts[1]), &bundles), Err(JwtError::Signature));
    let other = signer.token(&header(), &json!({"sub": ID}));
    let mixed = format!("{}.{}.{}", parts[0], other.split('.').nth(1).unwrap(), parts[2]);
    assert_eq!(check(&mixed, &bundles), Err(JwtError::Signature));
    let huge = "a".repeat(MAX_TOKEN + 1);
    assert_eq!(check(&huge, &bundles), Err(JwtError::TooLong));
}

#[test]
fn a_trust_domain_vouches_for_its_own_and_for_nobody_else() {
    let (own, other) = (Signer::new(), Signer::new());
    let foreign = TrustDomain::parse("other.postern").unwrap();
    let bundles = Bundles::of(bundle(td(), vec![own.key("one")]))
        .with(bundle(foreign, vec![other.key("one"), other.key("two")]).into());
    assert_eq!(check(&own.token(&header(), &claims()), &bundles), Ok(()));
    assert_eq!(check(&other.token(&header(), &claims()), &bundles), Err(JwtError::Signature));
    let by_two = json!({"alg": "ES256", "kid": "two"});
    assert_eq!(check(&other.token(&by_two, &claims()), &bundles), Err(JwtError::UnknownKey));
    let id = "spiffe://other.postern/ns/shop/sa/orders";
    let token = other.token(&by_two, &json!({"sub": id, "aud": AUDIENCE, "exp": seconds()}));
    assert_eq!(verify(&token, AUDIENCE, &bundles, now()).unwrap().id.as_str(), id);
}

#[test]
fn the_nine_algorithms_are_those_of_their_keys() {
    let mut keys = Vec::new();
    let mut tokens = Vec::new();
    for (algorithm, curve, signing) in [
        ("ES256", "P-256", &ECDSA_P256_SHA256_FIXED_SIGNING),
        ("ES384", "P-384", &ECDSA_P384_SHA384_FIXED_SIGNING),
        ("ES512", "P-521", &ECDSA_P521_SHA512_FIXED_SIGNING),
    ] {
        let signer = Signer::of(signing);
        let point = signer.0.public_key().as_ref()[1..].to_vec();
        let (x, y) = point.split_at(point.len() / 2);
        keys.push(json!({"kty": "EC", "crv": curve, "kid": curve, "x": encoded(x), "y": encoded(y)}));
        tokens.push(signer.token(&json!({"alg": algorithm, "kid": curve}), &claims()));
    }
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    // SEQUENCE { INTEGER of 257 bytes, a zero first; INTEGER 65537 } (RFC 8017, A.1.1).
    let der = rsa.public_key().as_ref();
    let (modulus, exponent) = (&der[8..265], [1, 0, 1]);
    keys.push(json!({"kty": "RSA", "kid": "rsa", "n": encoded(modulus), "e": encoded(exponent)}));
    for (algorithm, encoding) in
        [("RS256", &RSA_PKCS1_SHA256 as &'static dyn RsaEncoding), ("PS512", &RSA_PSS_SHA512)]
    {
        let header = json!({"alg": algorithm, "kid": "rsa"});
        let message = format!("{}.{}", encoded(header.to_string()), encoded(claims().to_string()));
        let mut signature = vec![0; rsa.public_modulus_len()];
        rsa.sign(encoding, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
        tokens.push(format!("{message}.{}", encoded(signature)));
    }
    // Keys that are not known here are passed over.
    keys.push(json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": encoded([0; 32])}));
    keys.push(json!({"kty": "EC", "crv": "secp256k1", "kid": "k1"}));
    keys.push(json!({"kty": "oct", "kid": "secret", "k": "AA"}));
    let keys = jwks(&json!(keys)).unwrap();
    assert_eq!(keys.iter().map(JwtKey::id).collect::<Vec<_>>(), ["P-256", "P-384", "P-521", "rsa"]);
    assert_eq!(JwtKeys::from_jwks(keys.to_jwks().as_bytes()).as_ref(), Ok(&keys), "they come back");

    let bundles = Bundles::of(bundle(td(), Vec::new()).with_jwt_keys(keys));
    for token in tokens {
        assert_eq!(check(&token, &bundles), Ok(()), "{token}");
    }
}

#[test]
fn broken_keys_refuse_their_set() {
    let key = |id: &str| {
        serde_json::from_str::<Value>(&JwtKeys::new(vec![Signer::new().key(id)]).unwrap().to_jwks())
    };
    let key = |id: &str| key(id).unwrap()["keys"][0].clone();
    let with = |name: &str, value: Value| {
        let mut key = key("one");
        key[name] = value;
        jwks(&json!([key]))
    };
    let (x, y) = (encoded([1; 32]), encoded([2; 33]));
    for (name, value) in [
        ("kid", json!("")),
        ("kid", json!("a\nb")),
        ("kid", json!("a".repeat(257))),
        ("x", json!(x)),
        ("y", json!(y)),
        ("y", json!("?")),
    ] {
        assert!(matches!(with(name, value.clone()), Err(JwtKeysError::Unfit(_))), "{name} {value}");
    }
    for (name, missing) in [("kid", "kid"), ("kty", "kty"), ("crv", "crv"), ("x", "x"), ("y", "y")] {
        assert_eq!(with(name, Value::Null), Err(JwtKeysError::Missing(missing)));
    }
    for (n, e) in [
        (vec![0xff; 255], vec![3]),
        (vec![0xff; 1_025], vec![3]),
        (vec![0xff; 256], vec![]),
        (vec![0xff; 256], vec![1; 5]),
    ] {
        let rsa = json!([{"kty": "RSA", "kid": "a", "n": encoded(n), "e": encoded(e)}]);
        assert!(matches!(jwks(&rsa), Err(JwtKeysError::Unfit(_))));
    }
    assert_eq!(jwks(&json!([key("a"), key("a")])), Err(JwtKeysError::Twice));
    let many: Vec<Value> = (0..33).map(|n| key(&n.to_string())).collect();
    assert_eq!(jwks(&json!(many)), Err(JwtKeysError::TooMany(33)));
    for bad in [&b"{}"[..], b"[]", b"{\"keys\":{}}", b"{\"keys\":[1]}", b"{\"keys\":[],\"keys\":[]}"] {
        assert_eq!(JwtKeys::from_jwks(bad), Err(JwtKeysError::NotASet));
    }
    assert_eq!(JwtKeys::from_jwks(&vec![b' '; 65 * 1_024]), Err(JwtKeysError::TooLong));
    assert!(JwtKeys::from_jwks(b"").unwrap().is_empty(), "one who has none sends none");
}

#[test]
fn a_bundle_document_has_the_standards_shape_and_comes_back() {
    let bundle = bundle(td(), vec![Signer::new().key("b"), Signer::new().key("a")]);
    let text = Document::of(&bundle, Duration::from_secs(300));
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["spiffe_sequence"], &json["spiffe_refresh_hint"]), (&json!(7), &json!(300)));
    let [root, first, second] = json["keys"].as_array().unwrap().as_slice() else { panic!("{text}") };
    assert_eq!(
        (&root["use"], &root["kty"], &root["crv"]),
        (&json!("x509-svid"), &json!("EC"), &json!("P-384"))
    );
    assert_eq!((root.get("kid"), root["x5c"].as_array().unwrap().len()), (None, 1));
    assert_eq!((&first["use"], &first["kid"]), (&json!("jwt-svid"), &json!("a")));
    assert_eq!((&second["kid"], second.get("x5c")), (&json!("b"), None));

    let read = Document::parse(td(), text.as_bytes()).unwrap();
    assert_eq!((read.has_sequence, read.refresh_hint), (true, Some(Duration::from_secs(300))));
    assert_eq!((read.bundle.digest(), read.bundle.jwt_keys()), (bundle.digest(), bundle.jwt_keys()));
    assert_eq!(read.bundle.sequence(), 7);
}

#[test]
fn documents_that_say_more_or_less() {
    let good: Value = serde_json::from_str(&Document::of(
        &bundle(td(), vec![Signer::new().key("a")]),
        Duration::from_secs(300),
    ))
    .unwrap();
    let parse = |json: &Value| Document::parse(td(), json.to_string().as_bytes());
    let with = |change: fn(&mut Value)| {
        let mut json = good.clone();
        change(&mut json);
        parse(&json)
    };
    // What is not known is passed over.
    let more = with(|json| {
        json["keys"].as_array_mut().unwrap().extend([
            json!({"use": "wit-svid", "kty": "EC"}),
            json!({"use": "x509-svid", "kty": "AKP"}),
            json!({"use": "jwt-svid", "kty": "AKP"}),
        ]);
        json["name"] = json!("value");
        json["keys"][0]["kid"] = json!("unasked");
        json.as_object_mut().unwrap().remove("spiffe_sequence");
        json.as_object_mut().unwrap().remove("spiffe_refresh_hint");
    });
    let more = more.unwrap();
    assert_eq!((more.has_sequence, more.bundle.sequence(), more.refresh_hint), (false, 0, None));
    assert_eq!((more.bundle.roots().len(), more.bundle.jwt_keys().iter().len()), (1, 1));

    let unfit = |error: DocumentError, says: &str| {
        assert!(matches!(error, DocumentError::Key { .. }), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    unfit(with(|json| drop(json["keys"][0].as_object_mut().unwrap().remove("use"))).unwrap_err(), "no `use`");
    unfit(with(|json| json["keys"][1]["use"] = json!(1)).unwrap_err(), "key 2 is unfit: it has no `use`");
    unfit(with(|json| drop(json["keys"][0].as_object_mut().unwrap().remove("kty"))).unwrap_err(), "kty");
    unfit(with(|json| json["keys"][0]["x5c"] = json!([])).unwrap_err(), "exactly one");
    unfit(
        with(|json| {
            let one = json["keys"][0]["x5c"][0].clone();
            json["keys"][0]["x5c"] = json!([one, one]);
        })
        .unwrap_err(),
        "exactly one",
    );
    unfit(with(|json| json["keys"][0]["x5c"] = json!(["a_-b"])).unwrap_err(), "base64");
    let error = with(|json| json["keys"][0]["x5c"] = json!([STANDARD.encode([0x30, 0])])).unwrap_err();
    assert!(matches!(error, DocumentError::Bundle(BundleError::Root { .. })), "{error}");
    let error = with(|json| json["keys"] = json!([json["keys"][1]])).unwrap_err();
    assert_eq!(error, DocumentError::Bundle(BundleError::Empty));
    let error = with(|json| json["keys"][1]["kid"] = Value::Null).unwrap_err();
    assert_eq!(error, DocumentError::Jwt(JwtKeysError::Missing("kid")));
    for (value, name) in
        [(json!(-1), "spiffe_sequence"), (json!("1"), "spiffe_sequence"), (json!(1.5), "spiffe_refresh_hint")]
    {
        let mut json = good.clone();
        json[name] = value;
        assert_eq!(parse(&json).unwrap_err(), DocumentError::NoNumber(name));
    }
    assert_eq!(with(|json| json["keys"] = json!(vec![0; 65])).unwrap_err(), DocumentError::TooManyKeys(65));
    assert_eq!(with(|json| json["keys"] = json!([0])).unwrap_err(), DocumentError::NoKeys);
    assert_eq!(Document::parse(td(), b"{}").unwrap_err(), DocumentError::NoKeys);
    assert_eq!(Document::parse(td(), b"{\"keys\":[],\"keys\":[]}").unwrap_err(), DocumentError::NotJson);
    assert_eq!(Document::parse(td(), &vec![b' '; 65 * 1_024]).unwrap_err(), DocumentError::TooLong);

    // Another trust domain's root cannot stand for this one.
    let foreign = TrustDomain::parse("other.postern").unwrap();
    let error = Document::parse(foreign, good.to_string().as_bytes()).unwrap_err();
    assert!(matches!(error, DocumentError::Bundle(BundleError::Root { .. })), "{error}");
}

use super::*;

fn claims(text: &str) -> Result<Claims, BadClaims> {
    Claims::from_json(text.as_bytes())
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn payloads() {
    let good = claims(r#"{"iss":"i","sub":"s","aud":"a","exp":10.9,"nbf":1,"iat":2,"x":{"y":[1]}}"#).unwrap();
    assert_eq!((good.issuer(), good.subject(), good.expires()), ("i", Some("s"), 10));
    assert_eq!((good.not_before(), good.issued_at()), (Some(1), Some(2)));
    assert_eq!(good.audiences().collect::<Vec<_>>(), ["a"]);
    let many = claims(r#"{"iss":"i","aud":["a","b"],"exp":10}"#).unwrap();
    assert_eq!(many.audiences().collect::<Vec<_>>(), ["a", "b"]);
    let deep = format!(r#"{{"iss":"i","exp":1,"x":{}{}}}"#, "[".repeat(20), "]".repeat(20));
    let wide = format!(r#"{{"iss":"i","exp":1,"x":[{}0]}}"#, "0,".repeat(2_000));
    let large = format!(r#"{{"iss":"i","exp":1,"x":"{}"}}"#, "x".repeat(MAX_PAYLOAD));
    for (text, expected) in [
        ("", BadClaims::NotJson),
        ("[]", BadClaims::NotJson),
        ("null", BadClaims::NotJson),
        (r#"{"iss":"i","exp":1}{}"#, BadClaims::NotJson),
        (r#"{"iss":"i","exp":1"#, BadClaims::NotJson),
        ("\u{feff}{}", BadClaims::NotJson),
        (r#"{"iss":"i","iss":"j","exp":1}"#, BadClaims::Duplicate),
        (r#"{"iss":"i","exp":1,"a":{"b":1,"b":2}}"#, BadClaims::Duplicate),
        (r#"{"iss":"i","exp":1,"\u0061":1,"a":2}"#, BadClaims::Duplicate),
        (&deep, BadClaims::TooLarge),
        (&wide, BadClaims::TooLarge),
        (&large, BadClaims::TooLarge),
        (r#"{"exp":1}"#, BadClaims::Missing("iss")),
        (r#"{"iss":"i"}"#, BadClaims::Missing("exp")),
        (r#"{"iss":7,"exp":1}"#, BadClaims::Type("iss")),
        (r#"{"iss":"","exp":1}"#, BadClaims::Type("iss")),
        (r#"{"iss":"i","exp":"1"}"#, BadClaims::Type("exp")),
        (r#"{"iss":"i","exp":null}"#, BadClaims::Type("exp")),
        (r#"{"iss":"i","exp":-1}"#, BadClaims::Type("exp")),
        (r#"{"iss":"i","exp":1e300}"#, BadClaims::Type("exp")),
        (r#"{"iss":"i","exp":1,"nbf":true}"#, BadClaims::Type("nbf")),
        (r#"{"iss":"i","exp":1,"iat":[]}"#, BadClaims::Type("iat")),
        (r#"{"iss":"i","exp":1,"sub":1}"#, BadClaims::Type("sub")),
        (r#"{"iss":"i","exp":1,"aud":1}"#, BadClaims::Type("aud")),
        (r#"{"iss":"i","exp":1,"aud":["a",1]}"#, BadClaims::Type("aud")),
    ] {
        assert_eq!(claims(text), Err(expected), "{text:.60}");
    }
}

#[test]
fn paths() {
    let claims = claims(
        r#"{"iss":"i","exp":1,"a":{"b":{"c":1}},"a.b":2,"https://x.example/roles":3,"kubernetes.io":{"namespace":4},"p/q":{"~":5}}"#,
    )
    .unwrap();
    for (path, expected) in [
        ("a.b.c", Some(1)),
        ("/a/b/c", Some(1)),
        ("/a.b", Some(2)),
        ("https://x.example/roles", Some(3)),
        ("/kubernetes.io/namespace", Some(4)),
        ("kubernetes.io.namespace", None),
        ("/p~1q/~0", Some(5)),
        ("a.b.c.d", None),
        ("a.x", None),
        ("x", None),
    ] {
        let path = ClaimPath::parse(path).unwrap();
        assert_eq!(claims.get(&path).and_then(Value::as_i64), expected, "{path}");
    }
    for bad in ["", ".", "a.", ".a", "a..b", "/", "//a", "/a/", "/a~2", "/a~", "a.a.a.a.a.a.a.a.a"] {
        assert!(ClaimPath::parse(bad).is_err(), "{bad}");
    }
    assert!(ClaimPath::parse(&"x".repeat(513)).is_err());
}

#[test]
fn tokens_end_one_by_one() {
    let token =
        |issuer: &str, exp: u64| Arc::new(claims(&format!(r#"{{"iss":"{issuer}","exp":{exp}}}"#)).unwrap());
    let set = TokenSet::verified(vec![token("a", 100), token("b", 200)]);
    let valid = |now: u64| match set.at(at(now)) {
        Tokens::Absent => Vec::new(),
        Tokens::Unknown => vec!["?"],
        Tokens::Verified(all) => all.iter().map(|claims| claims.issuer()).collect(),
    };
    assert_eq!(valid(99), ["b", "a"]);
    assert_eq!(valid(100), ["b"]);
    assert_eq!(valid(200), [""; 0]);
    assert_eq!(set.at(at(0)).of("a").count(), 1);
    assert_eq!(set.at(at(0)).of("c").count(), 0);
    assert!(set.has_ended_between(at(99), at(100)));
    assert!(!set.has_ended_between(at(100), at(199)));
    assert!(matches!(TokenSet::unknown().at(at(0)), Tokens::Unknown));
    assert!(matches!(TokenSet::absent().at(at(0)), Tokens::Absent));
    let many = TokenSet::verified(vec![token("a", 100); MAX_TOKENS + 1]);
    assert!(matches!(many.at(at(0)), Tokens::Unknown));
    let skewed = claims(r#"{"iss":"a","exp":100}"#).unwrap().with_skew(Duration::from_secs(30));
    let set = TokenSet::verified(vec![Arc::new(skewed)]);
    assert!(matches!(set.at(at(129)), Tokens::Verified(_)));
    assert!(matches!(set.at(at(130)), Tokens::Absent));
}

#[test]
fn claims_tell_nothing_to_a_log() {
    let claims = claims(r#"{"iss":"i","exp":1,"sub":"mallory","x":"secret"}"#).unwrap();
    let shown = format!("{claims:?}");
    assert!(!shown.contains("secret") && !shown.contains("mallory"), "{shown}");
}

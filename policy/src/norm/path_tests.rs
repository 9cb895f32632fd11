use proptest::prelude::*;

use super::*;

#[test]
fn sizes_and_stars() {
    let options = PathOptions::default();
    let long = format!("/{}", "a".repeat(MAX_PATH - 1));
    assert!(CanonPath::parse(&long, &options).is_ok());
    assert_eq!(CanonPath::parse(long + "a", &options), Err(NormError::PathTooLong));
    // Short enough as it came, and too long in its canonical spelling.
    let grows = format!("/{}", "`".repeat(MAX_PATH / 2));
    assert_eq!(CanonPath::parse(grows, &options), Err(NormError::PathTooLong));
    let method = |name| CanonMethod::parse(name).unwrap();
    assert_eq!(CanonPath::parse_for(&method("OPTIONS"), "*", &options).unwrap().path(), "*");
    assert_eq!(CanonPath::parse_for(&method("GET"), "*", &options), Err(NormError::PathStart));
}

#[test]
fn grpc() {
    let check = |method: &str, raw: &str| {
        let path = CanonPath::parse(raw, &PathOptions::default()).unwrap();
        check_grpc(&CanonMethod::parse(method).unwrap(), &path)
    };
    assert_eq!(check("POST", "/shop.Orders/Get"), Ok(()));
    for (method, raw) in [
        ("GET", "/shop.Orders/Get"),
        ("POST", "/shop.Orders"),
        ("POST", "/shop.Orders/"),
        ("POST", "/shop.Orders/Get/"),
        ("POST", "/shop.Orders/Get/x"),
        ("POST", "//shop.Orders/Get"),
        ("POST", "/shop.Orders/%47et"),
        ("POST", "/shop.Orders/G%20t"),
        ("POST", "/shop.Orders/Get;x"),
        ("POST", "/shop.Orders/Get?x"),
    ] {
        assert_eq!(check(method, raw), Err(NormError::Grpc), "{method} {raw}");
    }
}

/// Paths made of the pieces that attacks are made of.
fn hostile() -> impl Strategy<Value = String> {
    let pieces = vec![
        "/", "//", ".", "..", "%2e", "%2E", "%2f", "%5c", "\\", ";", "%3b", "%3B", "%25", "%61", "a",
        "admin", "%40", "@", "%c3", "{", "%7d", "?", "%0", "%00", "%3f", "%23", "x=1", "*",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..14)
        .prop_map(|parts| format!("/{}", parts.concat()))
}

fn any_slashes() -> impl Strategy<Value = PathOptions> {
    prop::sample::select(vec![EscapedSlashes::Reject, EscapedSlashes::Decode, EscapedSlashes::Keep])
        .prop_map(|escaped_slashes| PathOptions { escaped_slashes, ..PathOptions::default() })
}

fn assert_canonical(path: &str) {
    assert!(path.starts_with('/'), "{path}");
    for bad in
        ["//", "/./", "/../", "/..;", "/.;", "\\", "%2e", "%2E", "%61", "%41", "/..%3B", "%3b", "%2f", "%5c"]
    {
        assert!(!path.contains(bad), "{path} holds {bad}");
    }
    assert!(!path.ends_with("/.") && !path.ends_with("/.."), "{path}");
    assert!(path.bytes().all(|byte| byte > 0x20 && byte < 0x7f && byte != b'#' && byte != b'?'), "{path}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn canonical_is_a_fixed_point(raw in hostile(), options in any_slashes()) {
        if let Ok(path) = CanonPath::parse(&raw, &options) {
            let again = CanonPath::parse(path.path_and_query(), &options).unwrap();
            prop_assert_eq!(again.path_and_query(), path.path_and_query());
            prop_assert!(!again.is_changed());
            prop_assert!(again.views().eq(path.views()));
            prop_assert!(path.views().count() <= 1 + MAX_READINGS);
            for view in path.views() {
                assert_canonical(view);
            }
        }
    }

    /// Whatever a further decoding, a servlet container or a server that decodes too early makes of a path is among its views.
    #[test]
    fn readings_are_closed(raw in hostile(), options in any_slashes()) {
        if let Ok(path) = CanonPath::parse(&raw, &options) {
            let views: Vec<&str> = path.views().collect();
            for view in &views {
                // A server that drops parameters, written without the code under test.
                let stripped: Vec<&str> =
                    view.split('/').map(|s| s.split(';').next().unwrap().split("%3B").next().unwrap()).collect();
                let joined = stripped.join("/");
                let kept = PathOptions { escaped_slashes: EscapedSlashes::Keep, ..PathOptions::default() };
                let canonical = CanonPath::parse(&joined, &kept).unwrap();
                prop_assert!(views.contains(&canonical.path()), "{} of {views:?}", canonical.path());
                // One that decodes before it cuts off the query, or the fragment.
                for end in ["%3F", "%23"] {
                    let cut = view.split(end).next().unwrap();
                    let canonical = CanonPath::parse(cut, &kept).unwrap();
                    prop_assert!(views.contains(&canonical.path()), "{} of {views:?}", canonical.path());
                }
            }
        }
    }

    #[test]
    fn never_panics(raw in prop::collection::vec(any::<u8>(), 0..64), options in any_slashes()) {
        let mut with_slash = vec![b'/'];
        with_slash.extend(&raw);
        let _ = CanonPath::parse(&raw, &options);
        let _ = CanonPath::parse(&with_slash, &options);
    }
}

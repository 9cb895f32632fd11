//! What conditions mean, and what is refused.

use std::sync::Arc;

use postern_svid::{SpiffeId, TrustDomain};

use super::*;
use crate::norm::{CanonHost, CanonMethod, CanonPath};
use crate::rule::OwnDomains;
use crate::tokens::{Claims, Tokens};
use crate::verdict::{Operation, Source};
use crate::{HeaderFields, HeaderLines};

mod conformance;

struct Ask {
    id: Option<SpiffeId>,
    tokens: Vec<Arc<Claims>>,
    fields: HeaderFields,
    is_opaque: bool,
    at: Option<i64>,
}

fn ask() -> Ask {
    let claims = r#"{"iss": "i", "exp": 9999999999, "tenant": "a", "level": 3, "roles": ["x", "y"], "ratio": 0.5,
                     "realm": {"roles": ["admin"]}, "none": null}"#;
    let mut fields = HeaderFields::new();
    for (name, value) in [
        ("x-tenant", "a"),
        ("x-list", "a, b"),
        ("x-twice", "a"),
        ("x-twice", "a"),
        ("x-num", "17"),
        ("x-empty", ""),
    ] {
        fields.push(name, value).unwrap();
    }
    Ask {
        id: Some(SpiffeId::parse("spiffe://home/ns/shop/sa/web").unwrap()),
        tokens: vec![Arc::new(Claims::from_json(claims.as_bytes()).unwrap())],
        fields,
        is_opaque: false,
        at: Some(1_795_780_800 + 59),
    }
}

impl Ask {
    fn about(&self, text: &str) -> Result<bool, String> {
        let condition = Condition::parse(text).unwrap_or_else(|mistake| panic!("{text}: {mistake:?}"));
        self.judge(&condition)
    }

    fn judge(&self, condition: &Condition) -> Result<bool, String> {
        let domains = OwnDomains { canonical: TrustDomain::parse("home").unwrap(), aliases: Vec::new() };
        let source = Source { identity: self.id.as_ref(), address: "::ffff:10.0.0.1".parse().unwrap() };
        let (method, host) = (CanonMethod::get(), CanonHost::parse("Orders.Shop:80").unwrap());
        let path = CanonPath::parse("/v1/%61/7", &Default::default()).unwrap();
        let operation = if self.is_opaque {
            Operation::Tcp
        } else {
            Operation::Http {
                method: &method,
                path: &path,
                host: Some(&host),
                headers: Some(&self.fields as &dyn HeaderLines),
                upgrade: None,
                tokens: if self.tokens.is_empty() { Tokens::Absent } else { Tokens::Verified(&self.tokens) },
            }
        };
        let caller = &Caller::new(source, &domains);
        let view = (!self.is_opaque).then(|| path.path());
        condition.explain(Asked { caller, port: 8080, operation, view, at: self.at })
    }
}

#[test]
fn what_is_known() {
    for (text, expected) in [
        ("request.method == 'GET' && request.path == '/v1/a/7'", true),
        ("request.host == 'orders.shop' && request.port == 8080", true),
        ("request.headers['x-tenant'] == jwt.tenant", true),
        ("request.headers[\"x-tenant\"] in ['b', 'c']", false),
        ("'x-tenant' in request.headers && !('x-none' in request.headers)", true),
        ("has(request.headers.`x-tenant`) && 'x-list' in request.headers", true),
        ("int(request.headers['x-num']) < 18", true),
        ("request.headers['x-empty'] == ''", true),
        ("source.identity == 'spiffe://home/ns/shop/sa/web'", true),
        (
            "source.namespace == 'shop' && source.serviceAccount == 'web' && source.trustDomain == 'home'",
            true,
        ),
        ("source.address == '10.0.0.1'", true),
        ("jwt.level >= 3 && jwt.level + 1 == 4 && jwt.ratio < 1", true),
        ("jwt.roles.exists(r, r == 'y') && 'x' in jwt.roles && 'admin' in jwt.realm.roles", true),
        ("jwt.roles.all(r, r.matches('^[xyz]$'))", true),
        ("jwt['tenant'] == 'a' && jwt.none == null && !has(jwt.other)", true),
        ("now == timestamp('2026-11-27T12:00:00Z') && now.getHours('Europe/Oslo') == 13", true),
        ("request.path.matches('/v[0-9]+/') && !request.path.matches('^/v$')", true),
        ("request.path.startsWith('/v1') ? request.path.size() == 7 : false", true),
        ("jwt.roles.filter(r, r > 'x') == ['y'] && jwt.roles.map(r, r + '!') == ['x!', 'y!']", true),
        ("size(jwt.roles) == 2 && jwt.roles[1] == 'y'", true),
        // What a macro names hides what is outside.
        ("['b'].all(jwt, jwt == 'b') && [{'path': 'p'}].all(request, request.path == 'p')", true),
    ] {
        assert_eq!(ask().about(text), Ok(expected), "{text}");
    }
}

/// A part that decides alone decides; everything else that cannot be told is unknown, and says why.
#[test]
fn what_is_not_known() {
    for (text, why) in [
        ("request.headers['x-none'] == 'a'", "is not there"),
        ("request.headers['x-none'] != 'a'", "is not there"),
        ("request.headers['x-list'] == 'a'", "has several values"),
        ("request.headers['x-twice'] == 'a'", "has several values"),
        ("jwt.other == 1", "there is no key `other`"),
        ("jwt['other'] == 1", "there is no key `other`"),
        ("jwt.tenant", "neither true nor false"),
        ("jwt.tenant.more == 1", "does not take"),
        ("jwt.tenant < 1", "`<` does not take"),
        ("1 / (request.port - 8080) == 1", "divided by zero"),
        ("9223372036854775807 + request.port == 1", "too large"),
        ("int(request.path) == 1", "`int` has no value"),
        ("jwt.roles[7] == 'x'", "no element"),
        ("jwt.roles.all(r, r == 1 / 0 || true) && jwt.none", "neither true nor false"),
        ("jwt.level == 4 || jwt.other == 1", "no key"),
        ("!jwt.other", "no key"),
        ("jwt.other ? true : true", "no key"),
    ] {
        let found = ask().about(text).unwrap_err();
        assert!(found.contains(why), "{text}: {found}");
    }
    for (text, expected) in [
        ("jwt.level == 3 || jwt.other == 1", true),
        ("jwt.other == 1 || jwt.level == 3", true),
        ("jwt.other == 1 && jwt.level == 4", false),
        ("jwt.roles.exists(r, r == 'y' || r / 1 == 1)", true),
        ("jwt.roles.all(r, r == 'y' && r / 1 == 1)", false),
    ] {
        assert_eq!(ask().about(text), Ok(expected), "{text}");
    }
    let opaque = Ask { is_opaque: true, ..ask() };
    for text in
        ["request.method == 'GET'", "request.headers['x-a'] == ''", "has(jwt.a)", "'x-a' in request.headers"]
    {
        assert!(opaque.about(text).unwrap_err().contains("opaque bytes"), "{text}");
    }
    assert_eq!(opaque.about("request.port == 8080 && source.namespace == 'shop'"), Ok(true));
    let stranger = Ask { id: None, tokens: Vec::new(), at: None, ..ask() };
    for text in
        ["source.identity != 'a'", "source.namespace != 'a'", "jwt.tenant != 'a'", "now > timestamp(0)"]
    {
        stranger.about(text).unwrap_err();
    }
    let foreign = Ask { id: Some(SpiffeId::parse("spiffe://else/ns/shop/sa/web").unwrap()), ..ask() };
    assert!(foreign.about("source.namespace == 'shop'").unwrap_err().contains("another trust domain"));
    assert_eq!(foreign.about("source.trustDomain == 'else'"), Ok(true));
    let mut two = ask();
    two.tokens.push(Arc::clone(&two.tokens[0]));
    assert!(two.about("jwt.tenant == 'a'").unwrap_err().contains("more than one"));
}

#[test]
fn mistakes() {
    for (text, at, message, help) in [
        ("request.pth == '/'", 0..11, "unknown name `request.pth`", "`request.path`"),
        ("tru", 0..3, "unknown name `tru`", "known: request.method"),
        ("jwt.a == 1 && frobnicate(1)", 14..24, "unknown function `frobnicate`", "lists the functions"),
        ("request.path.startWith('/')", 13..22, "unknown function `startWith`", "`startsWith`"),
        ("startsWith(request.path, '/')", 0..10, "stands behind a value", "x.startsWith"),
        ("request.path.int() == 1", 13..16, "stands in front", "int(x)"),
        ("request.port == '80'", 0..20, "`==` does not take int and string", "int is never string"),
        ("request.path + 1 == ''", 0..16, "`+` does not take string and int", "convert"),
        ("request.path", 0..12, "this is string", "compare"),
        ("1 && true", 0..1, "join what is true or false", "compare"),
        ("request.headers == {}", 0..15, "named literally", "x-tenant"),
        ("request.headers[request.path] == ''", 0..29, "named literally", "x-tenant"),
        ("request.headers.size() == 1", 0..15, "named literally", "x-tenant"),
        ("request.headers.exists(h, h == '')", 0..15, "named literally", "x-tenant"),
        ("request.path.matches(jwt.pattern)", 21..32, "written where it is used", "quotes"),
        ("request.path.matches('(')", 21..24, "this pattern is not taken", "RE2"),
        ("request.path.matches('a{1000}{1000}')", 21..36, "this pattern is not taken", "bounded"),
        ("request.path == '/", 16..17, "has no end", "close it"),
        ("request.path == /a/", 16..17, "a value is expected", "conditions.md"),
        ("request.path = '/'", 13..14, "`=` has no meaning", "`==`"),
        ("true & true", 5..6, "`&` has no meaning", "`&&`"),
        ("(true", 5..5, "ends where `)`", "conditions.md"),
        ("true true", 5..9, "nothing more", "conditions.md"),
        ("'\\q' == ''", 1..3, "escape", "r\""),
        ("99999999999999999999 == 1", 0..20, "too large", "64 bits"),
        ("1a == 1", 0..2, "not a number", "quotes"),
        ("A{b: 1} == 1", 0..1, "no messages", "map"),
        ("for == 1", 0..3, "a word of CEL", "quotes"),
        ("[1].all(1, true)", 4..7, "a name for each element", "list.all"),
        ("[1].exists(x)", 4..10, "are missing", "list.exists"),
        ("has(jwt)", 0..3, "asks for a field", "has(jwt.tenant)"),
        ("true.all(x, x)", 0..4, "has no elements", "list or a map"),
        ("{1.5: 1} == {}", 1..4, "a key is no double", "strings"),
        ("now.getHours('Europe/Nowhere') < 8", 13..29, "no time zone `Europe/Nowhere`", "Europe/Oslo"),
        ("now.getHours('+25:99') < 8", 13..21, "no time zone", "+01:00"),
        ("now - timestamp(0) < duration('1day')", 30..36, "`duration` has no value", "1h30m"),
        ("now < timestamp('2026-13-01T00:00:00Z')", 16..38, "`timestamp` has no value", "2026-11-27T"),
        ("request.port < int('80a')", 19..24, "`int` has no value", "without quotes"),
        ("request.port == int(1e300)", 20..25, "`int` has no value", "a number that fits"),
        ("x\u{1b} == 1", 1..2, "has no meaning", "quotes"),
    ] {
        let mistake = Condition::parse(text).map(|_| ()).unwrap_err();
        assert_eq!((mistake.at.start, mistake.at.end), (at.start, at.end), "{text}: {mistake:?}");
        assert!(mistake.message.contains(message) && mistake.help.contains(help), "{text}: {mistake:?}");
    }
    let header = Condition::parse("true || request.headers['X-Tenant'] == ''").unwrap();
    assert_eq!(&*header.headers()[0].0, "X-Tenant", "the checker of documents refuses it");
}

/// Neither reading nor evaluating takes long, or goes deep, whatever the text.
#[test]
fn bounds() {
    let refused = |text: &str| Condition::parse(text).map(|_| ()).unwrap_err().message;
    assert!(refused(&format!("true{}", " ".repeat(5_000))).contains("at most 4096 bytes"));
    for deep in [
        format!("{}true{}", "(".repeat(1_000), ")".repeat(1_000)),
        format!("{}1{}", "[".repeat(1_000), "]".repeat(1_000)),
        format!("{}true", "!".repeat(1_000)),
        format!("1{} == 1", " + 1".repeat(500)),
        format!("jwt{} == 1", ".a".repeat(1_000)),
        format!("jwt{} == 1", "[0]".repeat(1_000)),
        format!("{}true", "true ? true : ".repeat(200)),
        format!("true{}", " == true".repeat(400)),
        format!("{}x", "x.map(y, ".repeat(300)),
    ] {
        assert!(refused(&deep).contains("nested more than"), "{deep}");
    }
    // Side by side they may be many.
    let wide = vec!["request.path == '/a'"; 150].join(" || ");
    assert_eq!(ask().about(&wide), Ok(false));
    let started = std::time::Instant::now();
    let list = "[0,1,2,3,4,5,6,7,8,9]";
    let nested = ["a", "b", "c", "d", "e", "f", "g", "h"]
        .iter()
        .fold("false".to_owned(), |inner, name| format!("{list}.exists({name}, {inner})"));
    let grows = "['0123456789012345678901234567890123456789'].map(a, a+a+a+a).map(a, a+a+a+a).map(a, a+a+a+a).map(a, a+a+a+a).map(a, a+a+a+a).map(a, a+a+a+a).map(a, a+a+a+a)[0].size() > 0";
    let doubles = "[1,2,3,4,5,6,7,8].map(a, [a,a,a,a,a,a,a,a].map(b, [b,b,b,b,b,b,b,b].map(c, [c,c,c,c,c,c,c,c].map(d, [d,d,d,d])))).size() > 0";
    for text in [&*nested, grows, doubles] {
        assert!(ask().about(text).unwrap_err().contains("more steps"), "{text}");
    }
    // A part that decides alone does so only if it is reached in time.
    assert_eq!(ask().about(&format!("true || {nested}")), Ok(true));
    assert!(ask().about(&format!("{nested} || true")).unwrap_err().contains("more steps"));
    assert!(started.elapsed().as_secs() < 5);
}

/// What an expression makes is held once, however many places it has in a list that doubles.
#[test]
fn lists_that_double_take_no_memory_of_texts() {
    let made =
        format!("['{}'].map(a, {})", "x".repeat(500), vec!["a"; 20].join(" + ")) + ".map(a, a + a + a)";
    let doubled = format!("[{made}]{}[0].size() == 2048", ".map(l, l + l)".repeat(11));
    let mut answer = None;
    let taken = allocation_counter::measure(|| answer = Some(ask().about(&doubled)));
    assert_eq!(answer.unwrap(), Ok(true));
    assert!(taken.bytes_max < 1 << 20, "{} bytes", taken.bytes_max);
}

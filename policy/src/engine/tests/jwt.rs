//! Random demands on tokens, and random tokens.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

use super::{maybe, some};
use crate::jwt::{ClaimMatch, ClaimTest, ClaimValue, JwtMatch};
use crate::tokens::{ClaimPath, Claims, TokenSet};

const ISSUERS: [&str; 2] = ["i", "j"];
const AUDIENCES: [&str; 2] = ["o", "p"];
const SUBJECTS: [&str; 2] = ["s", "t"];
const PATHS: [&str; 4] = ["c", "n.c", "/d.e", "https://x.y/z"];
const VALUES: [&str; 8] = ["v", "w", "vw", "v w", "true", "7", "-1", "7.5"];
const WORDS: [&str; 4] = ["v", "w", "vw", "7"];

/// MeshDefaults with these issuers.
pub(super) const DEFAULTS: &str = "jwt: {issuers: [\
    {issuer: i, audiences: [o, p], jwks: {file: /keys}}, {issuer: j, audiences: [o, p], jwks: {url: \"https://j/\"}}]}";

#[derive(Clone, Debug)]
pub(super) struct Written {
    issuer: &'static str,
    audiences: Option<Vec<&'static str>>,
    subjects: Option<Vec<&'static str>>,
    claims: Vec<(&'static str, Test)>,
}

#[derive(Clone, Debug)]
enum Test {
    Present(bool),
    Is(Vec<&'static str>),
    Prefix(Vec<&'static str>),
    Any(Vec<&'static str>),
    Has(Vec<&'static str>),
    Not(Vec<&'static str>),
    Lacks(Vec<&'static str>),
}

prop_compose! {
    pub(super) fn jwt()(
        issuer in prop::sample::select(&ISSUERS),
        audiences in maybe(some(&AUDIENCES)),
        subjects in maybe(some(&SUBJECTS)),
        claims in prop::collection::btree_map(prop::sample::select(&PATHS), test(), 0..3),
    ) -> Written {
        Written { issuer, audiences, subjects, claims: claims.into_iter().collect() }
    }
}

fn test() -> impl Strategy<Value = Test> {
    prop_oneof![
        any::<bool>().prop_map(Test::Present),
        some(&VALUES).prop_map(Test::Is),
        some(&WORDS).prop_map(Test::Prefix),
        some(&VALUES).prop_map(Test::Any),
        some(&WORDS).prop_map(Test::Has),
        some(&VALUES).prop_map(Test::Not),
        some(&WORDS).prop_map(Test::Lacks),
    ]
}

impl Written {
    pub(super) fn yaml(&self) -> String {
        let Self { issuer, audiences, subjects, claims } = self;
        let mut fields = vec![format!("issuer: {issuer}")];
        fields.extend(audiences.as_ref().map(|list| format!("audiences: {list:?}")));
        fields.extend(subjects.as_ref().map(|list| format!("subjects: {list:?}")));
        if !claims.is_empty() {
            let claims: Vec<String> =
                claims.iter().map(|(path, test)| format!("{path:?}: {{{}}}", test.yaml())).collect();
            fields.push(format!("claims: {{{}}}", claims.join(", ")));
        }
        format!("jwt: {{{}}}", fields.join(", "))
    }

    pub(super) fn rule(&self) -> JwtMatch {
        let Self { issuer, audiences, subjects, claims } = self;
        let names = |list: &Vec<&str>| list.iter().map(|name| (*name).into()).collect();
        JwtMatch {
            issuer: (*issuer).into(),
            audiences: audiences.as_ref().map(names),
            subjects: subjects.as_ref().map(names),
            claims: claims
                .iter()
                .map(|(path, test)| ClaimMatch { path: ClaimPath::parse(path).unwrap(), test: test.rule() })
                .collect(),
        }
    }
}

impl Test {
    fn yaml(&self) -> String {
        match self {
            Self::Present(present) => format!("present: {present}"),
            // Bare words: `true` and `7` are written as people write them.
            Self::Is(values) => format!("exact: [{}]", values.join(", ")),
            Self::Prefix(values) => format!("prefix: {values:?}"),
            Self::Any(values) => format!("any: {values:?}"),
            Self::Has(words) if words.len() == 1 => format!("has: {:?}", words[0]),
            Self::Has(words) => format!("has: {words:?}"),
            Self::Not(values) => format!("not: {{exact: {values:?}}}"),
            Self::Lacks(words) => format!("not: {{has: {words:?}}}"),
        }
    }

    fn rule(&self) -> ClaimTest {
        let exact = |list: &[&str]| list.iter().map(|value| ClaimValue::exact(value)).collect();
        let words = |list: &[&str]| list.iter().map(|word| (*word).into()).collect();
        match self {
            Self::Present(true) => ClaimTest::Present,
            Self::Present(false) => ClaimTest::Absent,
            Self::Is(values) => ClaimTest::Is(exact(values)),
            Self::Prefix(values) => {
                ClaimTest::Is(values.iter().map(|value| ClaimValue::Prefix((*value).into())).collect())
            }
            Self::Any(values) => ClaimTest::Any(exact(values)),
            Self::Has(list) => ClaimTest::Has(words(list)),
            Self::Not(values) => ClaimTest::Not(exact(values)),
            Self::Lacks(list) => ClaimTest::Lacks(words(list)),
        }
    }
}

fn value() -> impl Strategy<Value = Value> {
    let one = prop_oneof![
        4 => prop::sample::select(&VALUES).prop_map(Value::from),
        1 => prop::sample::select(vec![json!(true), json!(7), json!(-1), json!(7.0), json!(7.5), json!(null), json!({"c": "v"})]),
    ];
    let list = |of: BoxedStrategy<Value>| prop::collection::vec(of, 0..3).prop_map(Value::from).boxed();
    prop_oneof![3 => one.clone(), 2 => list(one.clone().boxed()), 1 => list(list(one.boxed()))]
}

prop_compose! {
    fn claims()(
        issuer in prop::sample::select(vec!["i", "j", "k"]),
        audiences in prop_oneof![
            prop::sample::select(&AUDIENCES).prop_map(Value::from),
            some(&AUDIENCES).prop_map(Value::from),
        ],
        subject in maybe(prop::sample::select(&SUBJECTS)),
        values in prop::collection::vec(prop::option::of(value()), 4),
        ends in 1..3_u64,
    ) -> Claims {
        let mut object = Map::new();
        object.insert("iss".into(), issuer.into());
        object.insert("aud".into(), audiences);
        object.insert("exp".into(), ends.into());
        object.extend(subject.map(|subject| ("sub".into(), subject.into())));
        let mut values = values.into_iter();
        let mut next = || values.next().flatten();
        object.extend(next().map(|value| ("c".into(), value)));
        object.extend(next().map(|value| ("n".into(), json!({ "c": value }))));
        object.extend(next().map(|value| ("d.e".into(), value)));
        object.extend(next().map(|value| ("https://x.y/z".into(), value)));
        Claims::from_object(object).unwrap()
    }
}

/// A request's tokens: none, something unknown, one or two, some of them expired by second 1.
pub(super) fn tokens() -> impl Strategy<Value = TokenSet> {
    prop_oneof![
        1 => Just(TokenSet::absent()),
        1 => Just(TokenSet::unknown()),
        4 => prop::collection::vec(claims().prop_map(Arc::new), 1..3).prop_map(TokenSet::verified),
    ]
}

/// When questions are asked: one token in two has ended.
pub(super) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1)
}

/// Some of them.
pub(super) fn samples() -> Vec<TokenSet> {
    let mut runner = TestRunner::deterministic();
    (0..48).map(|_| tokens().new_tree(&mut runner).unwrap().current()).collect()
}

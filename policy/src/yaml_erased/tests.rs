//! Whatever is read, in whatever way it is wrong: the same as without the narrow place, and with the reader's own values with
//! places.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Debug, Formatter};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::yaml::Location;
use crate::yaml_limits;

/// The types that are read, with values and places of one kind.
macro_rules! types {
    ($($spanned:tt)*) => {
use super::*;
use $($spanned)*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(dead_code, reason = "only printed")]
pub(super) struct Whole {
    name: Spanned<String>,
    port: Option<u16>,
    list: Option<Spanned<Vec<Spanned<Part>>>>,
    #[serde(default)]
    choices: Vec<Choice>,
    map: Option<BTreeMap<String, Spanned<Loose>>>,
    nothing: Option<()>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only printed")]
pub(super) struct Part {
    a: bool,
    b: Spanned<i64>,
    c: Option<(u8, char)>,
    d: Option<f32>,
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only printed")]
pub(super) enum Choice {
    Plain,
    One(Spanned<u8>),
    Two(u8, String),
    Named { x: i8, y: Option<Box<Self>> },
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
#[expect(dead_code, reason = "only printed")]
pub(super) enum Loose {
    Number(i64),
    Text(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", content = "spec")]
#[expect(dead_code, reason = "only printed")]
pub(super) enum Tagged {
    Whole(Box<Whole>),
    Part(Spanned<Part>),
}

    };
}

mod ours {
    types! { crate::yaml::Spanned }
}

mod theirs {
    types! { super::Plain as Spanned }
}

/// The reader's own, shown as ours.
struct Plain<T>(serde_saphyr::Spanned<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Plain<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde_saphyr::Spanned::deserialize(deserializer).map(Self)
    }
}

impl<T: Debug> Debug for Plain<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let place = Location::from(self.0.referenced);
        f.debug_struct("Spanned").field("value", &self.0.value).field("referenced", &place).finish()
    }
}

#[derive(Debug, Deserialize)]
#[expect(dead_code, reason = "only printed")]
struct Newtype(u64);

const TEXTS: &[&str] = &[
    "",
    "~",
    "true",
    "yes",
    "'true'",
    "17",
    "-3",
    "300",
    "70000",
    "1e3",
    "0x1f",
    "1_000",
    "18446744073709551616",
    "word",
    "\"two words\"",
    "é",
    "|\n  block\n  text\n",
    "[]",
    "{}",
    "[1, 2, 3]",
    "[a, b]",
    "[a, [b]]",
    "a: 1",
    "a: 1\na: 2",
    "name: x",
    "name: x\nport: 80",
    "name: x\nport: 65536",
    "name: x\nport: '80'",
    "name: 5\nport: eighty",
    "name: [x]",
    "name:\n  x: 1",
    "nmae: x",
    "name: x\nlist: [{a: true, b: 1}]",
    "name: x\nlist:\n- {a: true, b: 1}\n- {a: no, b: 1}",
    "name: x\nlist:\n- {a: true, b: one}",
    "name: x\nlist:\n- {a: true}",
    "name: x\nlist:\n- {a: true, b: 1, e: 2}",
    "name: x\nlist:\n- {a: true, b: 1, c: [1, x], d: 1.5}",
    "name: x\nlist:\n- {a: true, b: 1, c: [1]}",
    "name: x\nlist:\n- {a: true, b: 1, c: [1, xy]}",
    "name: x\nlist: 3",
    "name: x\nchoices: [Plain, One: 3]",
    "name: x\nchoices:\n- Plain\n- {One: 3}\n- {Two: [1, z]}\n- {Named: {x: -1, y: Plain}}",
    "name: x\nchoices: [{Named: {x: 200}}]",
    "name: x\nchoices: [{Two: [1]}]",
    "name: x\nchoices: [Plane]",
    "name: x\nchoices: [{Plane: 1}]",
    "name: x\nchoices: [{Plain: 1}]",
    "name: x\nchoices: [One]",
    "name: x\nmap: {a: true, b: two, c: [x, y]}",
    "name: x\nmap: {a: {b: c}}",
    "name: x\nmap: {a: 1, a: 2}",
    "name: x\nnothing: ~",
    "name: x\nnothing: 1",
    "base: &b {a: true, b: 1}\nname: x",
    "name: &n x\nmap: {k: *n}",
    "name: x\nmap: {k: *n}",
    "name: x\nlist: [&p {a: true, b: 1}, *p]",
    "name: x\nlist: [&p {a: true, b: q}, *p]",
    "<<: {name: x}",
    "kind: Whole\nspec: {name: x, port: 1}",
    "kind: Part\nspec: {a: true, b: x}",
    "kind: Other\nspec: 1",
    "kind: Part",
    "name: x\n---\nname: y",
    "name: x\n  port: 1",
    "name: [x",
    "name: \"x",
    "\tname: x",
    "name: x\n...\n",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
];

fn same<Ours: DeserializeOwned + Debug, Theirs: DeserializeOwned + Debug>() {
    for text in TEXTS {
        let plain = serde_saphyr::from_str_with_options::<Theirs>(text, yaml_limits::options());
        let erased = super::from_str::<Ours>(text, yaml_limits::options());
        let of = std::any::type_name::<Ours>();
        assert_eq!(format!("{erased:?}"), format!("{plain:?}"), "{text:?} as {of}");
    }
}

fn same_as_itself<T: DeserializeOwned + Debug>() {
    same::<T, T>();
}

#[test]
fn everything_reads_as_it_does_without() {
    use crate::yaml::Spanned as Our;
    use Plain as Their;
    same::<ours::Whole, theirs::Whole>();
    same::<Our<ours::Whole>, Their<theirs::Whole>>();
    same::<ours::Part, theirs::Part>();
    same::<Vec<ours::Part>, Vec<theirs::Part>>();
    same::<ours::Choice, theirs::Choice>();
    same::<Vec<Our<ours::Choice>>, Vec<Their<theirs::Choice>>>();
    same::<Our<ours::Loose>, Their<theirs::Loose>>();
    same::<ours::Tagged, theirs::Tagged>();
    same::<Our<Our<Option<u8>>>, Their<Their<Option<u8>>>>();
    same::<BTreeMap<String, Our<String>>, BTreeMap<String, Their<String>>>();
    same_as_itself::<ours::Loose>();
    same_as_itself::<Newtype>();
    same_as_itself::<Option<Newtype>>();
    same_as_itself::<String>();
    same_as_itself::<Box<str>>();
    same_as_itself::<char>();
    same_as_itself::<bool>();
    same_as_itself::<()>();
    same_as_itself::<(u8, u8, u8)>();
    same_as_itself::<[String; 2]>();
    same_as_itself::<HashMap<u16, f64>>();
    same_as_itself::<Vec<Vec<String>>>();
    same_as_itself::<serde::de::IgnoredAny>();
    same_as_itself::<serde_json::Value>();
    same_as_itself::<(i8, i16, i32)>();
    same_as_itself::<(u8, u32, u64)>();
    same_as_itself::<i128>();
    same_as_itself::<u128>();
    same_as_itself::<f32>();
}

/// serde reads what stands before the tag into memory, where it has no place any more.
#[test]
fn a_value_that_has_lost_its_place_is_refused() {
    let text = "spec: {a: true, b: 1}\nkind: Part";
    let error = super::from_str::<ours::Tagged>(text, yaml_limits::options()).unwrap_err().to_string();
    assert!(error.contains("without its place"), "{error}");
}

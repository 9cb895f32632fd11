//! CEL's own conformance suite (google/cel-spec, tests/simple), as far as what is offered here goes. The cases are fetched
//! (policy/tests/cel-spec.sh); every case that is left out is so for a reason that stands here.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;

use super::super::check::{Environment, bind};
use super::super::eval::{Evaluated, Facts, evaluate};
use super::super::parse::parse;
use super::super::types::Type;
use super::super::value::{Entries, Fail, List, Shared, Value};
use super::super::{Mistake, time};

mod javascript;

/// Whole sections that are about what is not offered.
const SECTIONS: [(&str, &str); 16] = [
    ("bindings_ext", "extensions"),
    ("block_ext", "extensions"),
    ("encoders_ext", "extensions"),
    ("math_ext", "extensions"),
    ("network_ext", "extensions"),
    ("proto2_ext", "extensions"),
    ("macros2", "macros with two variables"),
    ("optionals", "optional values"),
    ("enums", "messages and enums"),
    ("proto2", "messages and enums"),
    ("proto3", "messages and enums"),
    ("dynamic", "messages and enums"),
    ("wrappers", "messages and enums"),
    ("type_deduction", "types that a checker tells"),
    ("unknowns", "unknown values"),
    ("plumbing", "the harness itself"),
];
/// Functions that are not offered, of sections that are.
const FUNCTIONS: [&str; 14] = [
    "charAt",
    "indexOf",
    "lastIndexOf",
    "substring",
    "trim",
    "replace",
    "split",
    "join",
    "format",
    "reverse",
    "quote",
    "fn",
    "f_unknown",
    "unknown_fn",
];
/// Deliberately different, by name.
const DIFFERENT: [(&str, &str); 6] = [
    ("unbound_is_runtime_error", "names are known before there are values"),
    ("not_lt_dyn_int_big_lossy_double", "numbers of different types are compared exactly"),
    ("not_gt_dyn_big_double_int", "numbers of different types are compared exactly"),
    ("lte_dyn_big_double_int", "numbers of different types are compared exactly"),
    ("gte_dyn_int_big_lossy_double", "numbers of different types are compared exactly"),
    ("toString_timestamp_nanos", "the last 26 hours of the year 9999"),
];

enum Outcome {
    Passed,
    /// Why it is out of scope.
    Out(String),
    Failed(String),
}

#[test]
fn cases_of_the_specification() {
    let Some(cases) = fetched() else { return };
    let all = javascript::module(&cases).expect("the file holds one value");
    let (mut passed, mut out, mut failed) = (0, BTreeMap::<String, usize>::new(), Vec::new());
    for section in list(&all, "suites") {
        for part in list(section, "suites") {
            for case in list(part, "tests") {
                let name = format!(
                    "{}/{}/{}",
                    word(section, "name"),
                    word(part, "name"),
                    word(&case["original"], "name")
                );
                match run(word(section, "name"), word(part, "name"), &case["original"]) {
                    Outcome::Passed => passed += 1,
                    Outcome::Out(why) => *out.entry(why).or_default() += 1,
                    Outcome::Failed(how) => {
                        failed.push(format!("{name}: {}: {how}", word(&case["original"], "expr")))
                    }
                }
            }
        }
    }
    let left: usize = out.values().sum();
    // Not through `println!`, which a passing test's output is swallowed with.
    let _ = writeln!(
        std::io::stderr(),
        "CEL conformance: {passed} passed, {left} out of scope, {} failed; out of scope: {out:?}",
        failed.len()
    );
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(passed >= 1_050, "{passed}");
}

fn fetched() -> Option<String> {
    let exe = std::env::current_exe().expect("a test runs");
    let target = exe
        .ancestors()
        .find(|path| path.join("CACHEDIR.TAG").exists())
        .map_or_else(PathBuf::new, Path::to_path_buf);
    let place = target.join("foreign/cel-spec");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cel-spec.sh");
    let fetched = Command::new("sh").arg(script).arg(&place).output();
    let why = match &fetched {
        Ok(output) if output.status.success() => {
            return Some(std::fs::read_to_string(place.join("conformance.js")).expect("it was fetched"));
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    // As tests with foreign programs do: loudly, and counted where CI looks.
    let line = format!("SKIPPED cases_of_the_specification: {why}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    let skipped = target.join("skipped.txt");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&skipped);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    assert!(written.is_ok(), "a test that is skipped must be counted: {written:?}");
    None
}

fn word<'j>(json: &'j Json, key: &str) -> &'j str {
    json[key].as_str().unwrap_or_default()
}

fn list<'j>(json: &'j Json, key: &str) -> &'j [Json] {
    json[key].as_array().map_or(&[], Vec::as_slice)
}

fn flag(json: &Json, key: &str) -> bool {
    json[key].as_bool().unwrap_or_default()
}

fn run(section: &str, part: &str, case: &Json) -> Outcome {
    let out = |why: &str| Outcome::Out(why.to_owned());
    let text = word(case, "expr");
    // They ask for `a.for() || true` to be read, with a function that nobody has declared.
    if part == "receiver_function_names" {
        return out("functions are known before there are values");
    }
    if let Some((_, why)) = SECTIONS.iter().find(|(name, _)| *name == section) {
        return out(why);
    }
    if let Some((_, why)) = DIFFERENT.iter().find(|(name, _)| *name == word(case, "name")) {
        return out(why);
    }
    if flag(case, "checkOnly") || !case["typedResult"].is_null() {
        return out("types that a checker tells");
    }
    if flag(case, "disableMacros") {
        return out("macros that are switched off");
    }
    let whole = case.to_string();
    if whole.contains("TestAllTypes")
        || whole.contains("NestedEnum")
        || whole.contains("google.protobuf.") && text.contains('{')
    {
        return out("messages and enums");
    }
    let (mut names, mut values) = (Vec::new(), Vec::new());
    for declared in list(case, "typeEnv") {
        let Some(found) = declared_type(&declared["ident"]["type"]) else {
            return out("declared functions and messages");
        };
        let Some(value) = case["bindings"].get(word(declared, "name")).map(|bound| value(&bound["value"]))
        else {
            return out("names without a value");
        };
        let Some(value) = value else { return out("messages and enums") };
        names.push((word(declared, "name"), found));
        values.push(value);
    }
    for (name, bound) in case["bindings"].as_object().into_iter().flatten() {
        if names.iter().all(|(known, _)| known != name) {
            let Some(value) = value(&bound["value"]) else { return out("messages and enums") };
            names.push((name, Type::Dyn));
            values.push(value);
        }
    }
    if !word(case, "container").is_empty() {
        return out("containers of names");
    }
    let is_error = !case["evalError"].is_null() || !case["anyEvalErrors"].is_null();
    let environment = Environment { variables: &names, headers: None, strict: !flag(case, "disableCheck") };
    let bound = match parse(text).and_then(|expr| bind(expr, &environment)) {
        Ok(bound) => bound,
        Err(mistake) => return refused(&mistake, is_error),
    };
    let found = evaluate(&bound.expr, &Values(&values));
    let expected = if is_error {
        "an error".to_owned()
    } else if case["value"].is_null() {
        // What is not said is true.
        "true".to_owned()
    } else {
        match value(&case["value"]) {
            Some(value) => show(&value),
            None => return out("messages and enums"),
        }
    };
    let found = match &found {
        Ok(value) => show(value),
        Err(Fail::TooMuch) => "more steps than there are".to_owned(),
        Err(_) => "an error".to_owned(),
    };
    if found == expected {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("{found} instead of {expected}"))
    }
}

/// An expression that is not taken: well so if it fails in other implementations when it is evaluated.
fn refused(mistake: &Mistake, is_error: bool) -> Outcome {
    let Mistake { message, .. } = mistake;
    if message.contains("there are no messages") {
        return Outcome::Out("messages and enums".to_owned());
    }
    if let Some(name) = message.strip_prefix("unknown function `") {
        let name = name.trim_end_matches('`');
        if FUNCTIONS.contains(&name) {
            return Outcome::Out("functions that are not offered".to_owned());
        }
    }
    if message.contains("a pattern is written where it is used") {
        return Outcome::Out("patterns that are computed".to_owned());
    }
    if message.contains("nested more than") {
        return Outcome::Out("nested too deeply".to_owned());
    }
    if is_error { Outcome::Passed } else { Outcome::Failed(format!("{mistake:?}")) }
}

struct Values<'v>(&'v [Value<'static>]);

impl<'a> Facts<'a> for Values<'_> {
    fn variable(&self, at: usize) -> Evaluated<'a> {
        self.0.get(at).cloned().ok_or(Fail::Undeclared)
    }

    fn header(&self, _: usize) -> Evaluated<'a> {
        Err(Fail::Undeclared)
    }

    fn has_header(&self, _: usize) -> Result<bool, Fail> {
        Err(Fail::Undeclared)
    }
}

fn declared_type(json: &Json) -> Option<Type> {
    if let Some(name) = json["primitive"].as_str() {
        return Some(match name {
            "BOOL" => Type::Bool,
            "INT64" => Type::Int,
            "UINT64" => Type::Uint,
            "DOUBLE" => Type::Double,
            "STRING" => Type::Text,
            "BYTES" => Type::Bytes,
            _ => return None,
        });
    }
    match json["wellKnown"].as_str() {
        Some("TIMESTAMP") => return Some(Type::Timestamp),
        Some("DURATION") => return Some(Type::Duration),
        Some(_) => return None,
        None => {}
    }
    if let Some(of) = json.get("listType") {
        return Some(Type::list(declared_type(&of["elemType"]).unwrap_or(Type::Dyn)));
    }
    if let Some(of) = json.get("mapType") {
        let (key, value) =
            (declared_type(&of["keyType"])?, declared_type(&of["valueType"]).unwrap_or(Type::Dyn));
        return Some(Type::Map(Box::new(key), Box::new(value)));
    }
    json.get("dyn").map(|_| Type::Dyn)
}

/// A `cel.expr.Value` in the JSON form of Protobuf.
fn value(json: &Json) -> Option<Value<'static>> {
    let (kind, of) = json.as_object()?.iter().next()?;
    let text = || of.as_str();
    Some(match kind.as_str() {
        "nullValue" => Value::Null,
        "boolValue" => Value::Bool(of.as_bool()?),
        "int64Value" => Value::Int(text().map_or_else(|| of.as_i64(), |text| text.parse().ok())?),
        "uint64Value" => Value::Uint(text().map_or_else(|| of.as_u64(), |text| text.parse().ok())?),
        "doubleValue" => Value::Double(match text() {
            Some("Infinity") => f64::INFINITY,
            Some("-Infinity") => f64::NEG_INFINITY,
            Some("NaN") => f64::NAN,
            _ => of.as_f64()?,
        }),
        "stringValue" => Value::Text(Shared::Made(text()?.into())),
        "bytesValue" => Value::Bytes(Shared::Made(javascript::base64(text()?)?.into())),
        "typeValue" => Value::Type(Box::leak(text()?.to_owned().into_boxed_str())),
        "listValue" => {
            let items: Option<Vec<Value<'static>>> = list(of, "values").iter().map(value).collect();
            Value::List(List::Items(items?.into()))
        }
        "mapValue" => {
            let pair = |entry: &Json| Some((value(&entry["key"])?, value(&entry["value"])?));
            let entries: Option<Vec<_>> = list(of, "entries").iter().map(pair).collect();
            Value::Map(Entries::Items(entries?.into()))
        }
        "objectValue" => match word(of, "@type").rsplit('/').next()? {
            "google.protobuf.Timestamp" => Value::Timestamp(time::timestamp(word(of, "value"))?),
            "google.protobuf.Duration" => Value::Duration(time::duration(word(of, "value"))?),
            _ => return None,
        },
        _ => return None,
    })
}

/// One text for equal values of one type.
fn show(value: &Value<'_>) -> String {
    match value {
        Value::Bool(value) => value.to_string(),
        Value::List(list) => {
            let items: Vec<String> =
                (0..list.len()).filter_map(|at| list.at(at)).map(|item| show(&item)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Map(entries) => {
            let pair = |key: &Value<'_>| {
                format!("{}: {}", show(key), entries.get(key).as_ref().map_or_else(String::new, show))
            };
            let mut pairs: Vec<String> = entries.keys().iter().map(pair).collect();
            pairs.sort();
            format!("{{{}}}", pairs.join(", "))
        }
        other => format!("{other:?}"),
    }
}

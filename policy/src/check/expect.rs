//! `expect` of a PolicyTest's case, and whether the rules that it names are there.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use crate::yaml::Location;

use super::{Page, Test, is_name};
use crate::doc::{ExpectDoc, Sp};
use crate::not_asked::NotAsked;
use crate::verdict::{Action, Enforcement, RuleName};
use crate::yaml;

const RULE_FORM: &str = "a rule is named `document/rule`, or `namespace/document/rule`";
const LIMIT_FORM: &str = "a limit is named `document/limit`, or `namespace/document/limit`";

/// The verdict that a case expects.
pub(crate) enum Expected {
    Allow(Option<Named>),
    /// Whyever.
    Denied,
    Deny(Named),
    Default,
    /// No rule is asked, for this reason.
    Refused(&'static str),
}

/// A rule by its name, where the name stands.
pub(crate) struct Named {
    pub(crate) rule: Box<str>,
    at: Location,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(Some(named)) => write!(f, "allowed by {}", named.rule),
            Self::Allow(None) => f.write_str("allowed"),
            Self::Denied => f.write_str("denied"),
            Self::Deny(named) => write!(f, "denied by {}", named.rule),
            Self::Default => f.write_str("denied by default"),
            Self::Refused(reason) => write!(f, "refused before any rule is asked ({reason})"),
        }
    }
}

/// What is expected beside the verdict.
#[derive(Default)]
pub(crate) struct Beside {
    pub(crate) shadow: Option<Named>,
    pub(crate) audit: Option<Named>,
    /// All limits that match, if it is said.
    pub(crate) limits: Option<Vec<Named>>,
}

/// The verdict that is expected, and what stands beside it; `tested` is the workload's namespace.
pub(super) fn expectation(
    page: &mut Page<'_>,
    entry: &Sp<ExpectDoc>,
    tested: &str,
) -> (Option<Expected>, Beside) {
    let ExpectDoc { allow, deny, shadow, audit, limits } = &entry.value;
    let limits = limits.as_ref().map(|list| {
        let names = page.items(list, "limits");
        names.iter().filter_map(|word| name(page, word, tested, "limit", LIMIT_FORM, "")).collect()
    });
    let mut named = |word: &Sp<String>, words: &str| name(page, word, tested, "rule", RULE_FORM, words);
    let shadow = shadow.as_ref().and_then(|word| named(word, ""));
    let audit = audit.as_ref().and_then(|word| named(word, ""));
    let expected = match (allow, deny) {
        (Some(word), None) => match word.value.as_str() {
            "true" => Some(Expected::Allow(None)),
            _ => named(word, "; or write `true`").map(|named| Expected::Allow(Some(named))),
        },
        (None, Some(word)) => match word.value.as_str() {
            "true" => Some(Expected::Denied),
            "default" => Some(Expected::Default),
            text => match NotAsked::LABELS.iter().find(|label| **label == text) {
                Some(label) => Some(Expected::Refused(label)),
                None => {
                    let words = NotAsked::LABELS.join(", ");
                    named(word, &format!("; or write `true`, `default`, or why no rule is asked: {words}"))
                        .map(Expected::Deny)
                }
            },
        },
        (Some(_), Some(other)) => {
            page.error_with(other.referenced, "a request is allowed or denied", "leave out one of them");
            None
        }
        (None, None) => {
            page.error_with(entry.referenced, "nothing is expected", "write `allow` or `deny`");
            None
        }
    };
    (expected, Beside { shadow, audit, limits })
}

/// A rule's or limit's name in full.
fn name(
    page: &mut Page<'_>,
    word: &Sp<String>,
    tested: &str,
    what: &str,
    form: &str,
    words: &str,
) -> Option<Named> {
    let parts: Vec<&str> = word.value.split('/').collect();
    let full = match parts.as_slice() {
        [document, rule] => [tested, *document, *rule],
        [namespace, document, rule] => [*namespace, *document, *rule],
        _ => ["", "", ""],
    };
    if full.iter().all(|part| is_name(part)) {
        return Some(Named { rule: full.join("/").into(), at: word.referenced });
    }
    page.error_with(
        word.referenced,
        format!("`{}` names no {what}", yaml::printable(&word.value)),
        format!("{form}{words}"),
    );
    None
}

/// Whether each limit that a test names is there.
pub(crate) fn names_of_limits(page: &mut Page<'_>, test: &Test, limits: &BTreeSet<String>) {
    let named = test.cases.iter().flat_map(|case| case.beside.limits.iter().flatten());
    for named in named.filter(|named| !limits.contains(&*named.rule)) {
        let known: Vec<&str> = limits.iter().map(String::as_str).collect();
        let help = yaml::nearest(&named.rule, &known).unwrap_or_else(|| LIMIT_FORM.to_owned());
        page.error_with(named.at, format!("there is no limit {}", named.rule), help);
    }
}

/// Whether each rule that a test names is there and can do what is expected of it.
pub(crate) fn names_of_rules(page: &mut Page<'_>, test: &Test, rules: &HashMap<String, &RuleName>) {
    let mut check = |named: &Named, action: Option<Action>, enforcement: Enforcement| {
        let Some(rule) = rules.get(&*named.rule) else {
            let known: Vec<&str> = rules.keys().map(String::as_str).collect();
            let help = yaml::nearest(&named.rule, &known).unwrap_or_else(|| RULE_FORM.to_owned());
            return page.error_with(named.at, format!("there is no rule {}", named.rule), help);
        };
        if action.is_some_and(|action| action != rule.action) || enforcement != rule.enforcement {
            let shadow = if rule.enforcement == Enforcement::Shadow { " in the shadow" } else { "" };
            page.error_with(
                named.at,
                format!(
                    "this rule cannot be expected here: it is an {}{shadow} ({})",
                    rule.action, rule.place
                )
                .replace("an Deny", "a Deny"),
                "`allow` and `deny` name rules that decide; `shadow` and `audit` are beside them",
            );
        }
    };
    for case in &test.cases {
        match &case.expected {
            Expected::Allow(Some(named)) => check(named, Some(Action::Allow), Enforcement::Enforce),
            Expected::Deny(named) => check(named, Some(Action::Deny), Enforcement::Enforce),
            Expected::Allow(None) | Expected::Denied | Expected::Default | Expected::Refused(_) => {}
        }
        if let Some(named) = &case.beside.shadow {
            check(named, None, Enforcement::Shadow);
        }
        if let Some(named) = &case.beside.audit {
            check(named, Some(Action::Audit), Enforcement::Enforce);
        }
    }
}

//! Runs the PolicyTests of a set against its rules. Each workload that they are about gets its own generation, and each
//! case is put to the engine and to the reference interpreter, which must agree.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Serialize;

use crate::check::{Beside, CallOut, Case, Expected, Request, Test};
use crate::diagnostic::{Diagnostics, Place, SourceFile};
use crate::egress::Call;
use crate::generation::Generation;
use crate::load;
use crate::not_asked::NotAsked;
use crate::prove;
use crate::question::{Declared, Question, Told};
use crate::services::ServicePort;
use crate::verdict::{DenyReason, Effect, Operation, RuleId, RuleName, Scope, Source, Verdict, Workload};

/// What the tests of a set have shown.
#[derive(Clone, Debug, Serialize)]
pub struct TestReport {
    /// The cases, in the order of the set.
    pub cases: Vec<CaseResult>,
    /// The invariants, in the order of the set.
    pub invariants: Vec<InvariantResult>,
    /// All rules of the set, whomever they concern.
    pub rules: Vec<Coverage>,
}

/// One case of a PolicyTest.
#[derive(Clone, Debug, Serialize)]
pub struct CaseResult {
    /// The PolicyTest, `namespace/name`.
    pub test: String,
    /// The case's name.
    pub case: Box<str>,
    /// Where it stands.
    pub place: Place,
    /// Whether the answer is the expected one.
    pub passed: bool,
    /// The verdict that was expected.
    pub expected: String,
    /// The verdict.
    pub got: String,
    /// If it failed: why the request is answered so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
}

/// One invariant of a PolicyTest.
#[derive(Clone, Debug, Serialize)]
pub struct InvariantResult {
    /// The PolicyTest, `namespace/name`.
    pub test: String,
    /// The invariant's name.
    pub invariant: Box<str>,
    /// Where it stands.
    pub place: Place,
    /// Whether it holds for every request there can be.
    pub proven: bool,
    /// Classes of requests that were looked at, if it is proven.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<u64>,
    /// What was found.
    pub outcome: String,
    /// If a request breaks it: that request, as `postern policy explain DOCUMENTS` takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub witness: Option<String>,
    /// Why that request is answered so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
}

/// Whether tests reach a rule.
#[derive(Clone, Debug, Serialize)]
pub struct Coverage {
    /// The rule.
    pub rule: RuleName,
    /// Whether the verdict of some case names it: as the rule that decided, in its shadow or as its audit.
    pub covered: bool,
}

impl TestReport {
    /// Whether there are tests, and all of them pass. A run without any proves nothing, and is what a wrong path looks like.
    pub fn is_ok(&self) -> bool {
        (!self.cases.is_empty() || !self.invariants.is_empty())
            && self.passed() == self.cases.len()
            && self.proven() == self.invariants.len()
    }

    /// Invariants that are proven.
    pub fn proven(&self) -> usize {
        self.invariants.iter().filter(|invariant| invariant.proven).count()
    }

    /// Cases that passed.
    pub fn passed(&self) -> usize {
        self.cases.iter().filter(|case| case.passed).count()
    }

    /// Rules that some case's verdict names.
    pub fn covered(&self) -> usize {
        self.rules.iter().filter(|rule| rule.covered).count()
    }

    /// [`covered`](Self::covered) in whole percents, rounded down: 100 are all of them. A set without rules is covered.
    pub fn percent(&self) -> u8 {
        let percent = (self.covered() * 100).checked_div(self.rules.len()).unwrap_or(100);
        u8::try_from(percent).unwrap_or(100)
    }
}

/// Runs the PolicyTests of a set. The tests say themselves which workload they are about; the scope's is not asked.
/// Mistakes of the set are returned as [`load`](crate::load()) returns them, and names of rules that are not there too.
pub fn run_tests(files: &[SourceFile], scope: &Scope) -> Result<TestReport, Diagnostics> {
    let scope = Scope { workload: None, ..scope.clone() };
    let checked = load::checked(files, &scope)?;
    if !checked.misnamed.is_empty() {
        return Err(checked.misnamed);
    }
    let mut by_workload: BTreeMap<_, Vec<(usize, &Test, &Case)>> = BTreeMap::new();
    let mut count = 0;
    for test in checked.tests.iter().map(|test| &**test) {
        let Workload { namespace, service_account, labels } = &test.workload;
        let cases = by_workload.entry((namespace, service_account, labels)).or_default();
        for case in &test.cases {
            cases.push((count, test, case));
            count += 1;
        }
    }
    let mut results = Vec::with_capacity(count);
    let mut covered = HashSet::new();
    for cases in by_workload.values_mut() {
        let Some((_, test, _)) = cases.first() else { continue };
        let generation = checked.compiled(&test.workload, 0);
        let Workload { namespace, service_account, labels: _ } = &test.workload;
        let ports = generation.services().leading_to(namespace, service_account);
        // A time that has been told cannot be taken back.
        cases.sort_by_key(|(_, _, case)| case.at.is_some());
        for (at, test, case) in cases {
            results.push((*at, run(&generation, &ports, test, case, &mut covered)));
        }
    }
    results.sort_by_key(|(at, _)| *at);
    let rules = checked.rules().map(|rule| {
        let covered = covered.contains(&rule.to_string());
        Coverage { rule: rule.clone(), covered }
    });
    Ok(TestReport {
        rules: rules.collect(),
        cases: results.into_iter().map(|(_, result)| result).collect(),
        invariants: prove::results(&checked),
    })
}

fn run(
    generation: &Generation,
    ports: &BTreeMap<u16, &ServicePort>,
    test: &Test,
    case: &Case,
    covered: &mut HashSet<String>,
) -> CaseResult {
    if let Some(time) = case.at {
        let _changed = generation.tell_time(time);
    }
    let result = |passed: bool, got: String, explanation: Option<String>| CaseResult {
        test: format!("{}/{}", test.namespace, test.name),
        case: case.name.clone(),
        place: case.place.clone(),
        passed,
        expected: expected(case),
        got,
        explanation: explanation.filter(|_| !passed),
    };
    let told = match &case.request {
        Request::Tcp => Told::Tcp,
        Request::Tls(sni) => Told::Tls { sni: sni.as_ref() },
        Request::Http { method, target, host, fields, upgrade, token } => Told::Http {
            method,
            target,
            host: host.as_deref(),
            fields: Some(fields),
            upgrade: upgrade.as_ref(),
            token,
        },
        Request::Out(call) => return run_out(generation, call, test, case, covered, &result),
    };
    let source = Source { identity: case.identity.as_ref(), address: case.address };
    let declared = ports.get(&case.port).map(|port| Declared::from(*port));
    let question = Question { source, port: case.port, declared, told, at: case.at };
    let asked = match generation.asked(&question) {
        Ok(asked) => asked,
        Err(refusal) => return refused(case, refusal.why, refusal.to_string(), &result),
    };
    let operation = asked.operation();
    let connection = generation.connection(source);
    let limits = generation.limits_of(&connection, source, case.port, operation);
    let verdict = generation.decide(&connection, case.port, operation);
    let lacks_host = matches!(operation, Operation::Http { host: None, .. });
    if lacks_host
        && !verdict.is_allowed()
        && !generation.explain(source, case.port, operation).untold.is_empty()
    {
        let got = "not known: it depends on the host".to_owned();
        return result(false, got, Some(generation.answer(&question).to_string()));
    }
    let answer = Answer {
        verdict,
        reference: generation.decide_by_reference(source, case.port, operation),
        is_limited_alike: limits == generation.limits_by_reference(source, case.port, operation),
        limits: limits.iter().map(ToString::to_string).collect(),
        explain: Box::new(|| generation.answer(&question).to_string()),
    };
    judged(generation, case, answer, covered, &result)
}

/// A call of the workload itself.
fn run_out(
    generation: &Generation,
    call: &CallOut,
    test: &Test,
    case: &Case,
    covered: &mut HashSet<String>,
    result: &dyn Fn(bool, String, Option<String>) -> CaseResult,
) -> CaseResult {
    let CallOut { target, addresses, method } = call;
    let found = generation.called(target, &test.workload.namespace);
    let found = found.and_then(|port| Ok((port, generation.call_request(port, target, method)?)));
    let (port, request) = match found {
        Ok(found) => found,
        Err(why) => return refused(case, why, why.to_string(), result),
    };
    // What a document says about its endpoints is known without a resolver.
    let listed = port.addresses();
    let addresses = if addresses.is_empty() { &listed } else { addresses };
    let operation = match &request {
        Some((method, path)) => Operation::http(method, path),
        None => Operation::Tcp,
    };
    let call = Call { port, host: &target.host, addresses, own: &[], operation };
    let answer = Answer {
        verdict: generation.decide_egress(&call),
        reference: generation.decide_egress_by_reference(&call),
        limits: BTreeSet::new(),
        is_limited_alike: true,
        explain: Box::new(move || generation.explain_egress(&call).to_string()),
    };
    judged(generation, case, answer, covered, result)
}

/// Holds a refusal before any rule is asked against what is expected.
fn refused(
    case: &Case,
    why: NotAsked,
    text: String,
    result: &dyn Fn(bool, String, Option<String>) -> CaseResult,
) -> CaseResult {
    let is_expected = match case.expected {
        Expected::Refused(label) => label == why.label(),
        Expected::Denied => true,
        // Nothing names the destination: neither does a rule.
        Expected::Default => why == NotAsked::UnknownService,
        Expected::Allow(_) | Expected::Deny(_) => false,
    };
    let Beside { shadow, audit, limits } = &case.beside;
    let passed = is_expected && shadow.is_none() && audit.is_none() && limits.is_none();
    result(passed, Expected::Refused(why.label()).to_string(), Some(text))
}

/// What was answered to a case, and why.
struct Answer<'a> {
    verdict: Verdict,
    reference: Verdict,
    /// The limits that match, and whether the reference says the same.
    limits: BTreeSet<String>,
    is_limited_alike: bool,
    explain: Box<dyn Fn() -> String + 'a>,
}

/// Holds an answer against what is expected.
fn judged(
    generation: &Generation,
    case: &Case,
    answer: Answer<'_>,
    covered: &mut HashSet<String>,
    result: &dyn Fn(bool, String, Option<String>) -> CaseResult,
) -> CaseResult {
    let Answer { verdict, reference, limits: named, is_limited_alike, explain } = answer;
    let name = |id: RuleId| generation.rule(id).to_string();
    let (rule, audit) = (verdict.rule.map(name), verdict.audit.map(name));
    let shadow = verdict.shadow.and_then(|would| would.rule).map(name);
    covered.extend([&rule, &audit, &shadow].into_iter().flatten().cloned());
    let is = |named: &str| rule.as_deref() == Some(named);
    let decided = match (&case.expected, verdict.effect) {
        (Expected::Allow(Some(named)), Effect::Allow) | (Expected::Deny(named), Effect::Deny(_)) => {
            is(&named.rule)
        }
        (Expected::Default, Effect::Deny(reason)) => reason == DenyReason::NoRule,
        (Expected::Allow(None), Effect::Allow) | (Expected::Denied, Effect::Deny(_)) => true,
        _ => false,
    };
    let beside = [(&case.beside.shadow, &shadow), (&case.beside.audit, &audit)];
    let beside = beside
        .iter()
        .all(|(expected, got)| expected.as_ref().is_none_or(|named| got.as_deref() == Some(&*named.rule)));
    let wanted = case.beside.limits.as_ref();
    let wanted = wanted.map(|names| names.iter().map(|name| name.rule.to_string()).collect::<BTreeSet<_>>());
    let limited = wanted.as_ref().is_none_or(|wanted| *wanted == named);
    let mut got = match (verdict.effect, &rule) {
        (Effect::Allow, Some(rule)) => format!("allowed by {rule}"),
        (Effect::Allow, None) => "allowed".to_owned(),
        (Effect::Deny(_), Some(rule)) => format!("denied by {rule}"),
        (Effect::Deny(_), None) => "denied by default".to_owned(),
    };
    add_beside(&mut got, shadow.as_deref(), audit.as_deref(), wanted.is_some().then_some(&named));
    if verdict != reference || !is_limited_alike {
        let why = "the engine and the reference interpreter do not agree about this request: this is a mistake of \
                   the program, not of the rules; please report it";
        return result(false, got, Some(format!("{why}\nreference: {reference:?}")));
    }
    let passed = decided && beside && limited;
    let why = (!passed).then(explain);
    result(passed, got, why)
}

fn expected(case: &Case) -> String {
    let mut out = case.expected.to_string();
    add_beside(
        &mut out,
        case.beside.shadow.as_ref().map(|named| &*named.rule),
        case.beside.audit.as_ref().map(|named| &*named.rule),
        case.beside
            .limits
            .as_ref()
            .map(|names| names.iter().map(|name| name.rule.to_string()).collect())
            .as_ref(),
    );
    out
}

fn add_beside(
    text: &mut String,
    shadow: Option<&str>,
    audit: Option<&str>,
    limits: Option<&BTreeSet<String>>,
) {
    for (word, rule) in [("in the shadow of", shadow), ("audited by", audit)] {
        if let Some(rule) = rule {
            text.push_str(&format!(", {word} {rule}"));
        }
    }
    match limits.map(|names| names.iter().map(String::as_str).collect::<Vec<_>>()) {
        None => {}
        Some(names) if names.is_empty() => text.push_str(", under no limit"),
        Some(names) => text.push_str(&format!(", under the limits {}", names.join(", "))),
    }
}

#[cfg(test)]
#[path = "testing_tests.rs"]
mod tests;

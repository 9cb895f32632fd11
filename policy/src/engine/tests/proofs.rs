//! What is proven holds for every request of a small universe, and what is said to break a claim does break it. The
//! universe is made of the rules' own words and of what nearly is one, and knows nothing of the proof's classes.

use std::cell::Cell;
use std::io::Write as _;

use proptest::test_runner::{Config, TestRunner};

use super::boundaries::{Draw, Pools};
use super::*;
use crate::diagnostic::Place;
use crate::eval_ref::{self, Truth};
use crate::prove::{Invariant, Outcome, Witness, prove};

const CLAIMS: u32 = 250;
const CLAIMS_LONG: u32 = 10_000;
const QUESTIONS: usize = 2_500;

fn claim(written: &Written, action: Action) -> Invariant {
    let mut rule = Rule { action, target_ports: None, window: None, condition: None, ..rule(written) };
    for target in rule.to.iter_mut().flatten() {
        target.headers.clear();
    }
    for peer in rule.from.iter_mut().flatten() {
        peer.jwt = None;
        peer.not.iter_mut().for_each(|not| not.jwt = None);
    }
    Invariant { name: "claim".into(), place: Place { file: "claim".into(), line: 1, column: 1 }, rule }
}

/// Whether a claim is about this question, from its documentation and not from the proof.
fn is_about(claim: &Rule, question: &Question) -> bool {
    let (source, operation) = (question.source(), question.operation());
    let holds = |view: Option<&str>| {
        eval_ref::matches(claim, &domains(), source, question.port, operation, view, None) == Truth::True
    };
    match operation {
        Operation::Http { path, host, headers, .. } => {
            // A request that arrives has a host, and all of its fields are known.
            let known =
                headers.is_some_and(|fields| FIELDS.iter().all(|name| fields.each(name, &mut |_| {})));
            let mut views = path.views().map(Some);
            known
                && host.is_some()
                && if claim.action.is_wide() { views.any(holds) } else { views.all(holds) }
        }
        // A Deny fires on what it cannot know; a claim that names something of HTTP speaks of requests.
        Operation::Tcp | Operation::Tls { .. } => {
            let opaque = claim.to.as_ref().is_none_or(|to| to.iter().any(|target| !target.asks_layer7()));
            let to = claim
                .to
                .as_ref()
                .map(|to| to.iter().filter(|target| !target.asks_layer7()).cloned().collect());
            let claim = Rule { to, ..claim.clone() };
            opaque
                && eval_ref::matches(&claim, &domains(), source, question.port, operation, None, None)
                    == Truth::True
        }
    }
}

fn question_of(witness: &Witness) -> Question {
    let host = |text: &String| CanonHost::parse(text).unwrap();
    let request = witness.request.as_ref().map(|(method, path)| {
        let method = CanonMethod::parse(method).unwrap();
        let mut fields = HeaderFields::new();
        for (name, value) in &witness.headers {
            fields.push(name, value).unwrap();
        }
        Asked {
            path: CanonPath::parse_for(&method, path, &PathOptions::default()).unwrap(),
            method,
            // Where no rule asks for a host, any will do.
            host: Some(witness.host.as_ref().map_or_else(|| host(&"any.example".to_owned()), host)),
            headers: Some(fields),
            upgrade: witness.upgrade.as_ref().map(|name| Upgrade::parse(name).unwrap()),
            tokens: TokenSet::absent(),
        }
    });
    let sni = witness.sni.as_ref().map(|sni| sni.as_ref().map(host));
    Question { id: witness.identity.clone(), address: witness.address, port: witness.port, request, sni }
}

#[test]
fn what_is_proven_holds_and_what_is_found_is_real() {
    let long = std::env::var_os("POSTERN_TEST_LONG").is_some();
    let cases = if long { CLAIMS_LONG } else { CLAIMS };
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let counts = [const { Cell::new(0_u64) }; 5];
    let add = |at: usize, more: u64| counts[at].set(counts[at].get() + more);
    let strategy = (prop::collection::vec(written(), 0..7), written(), any::<bool>(), any::<u64>(), 0_u8..4);
    let run = TestRunner::new(config).run(&strategy, |(rules, scope, never, seed, open)| {
        let claim = claim(&scope, if never { Action::Deny } else { Action::Allow });
        let mut rules: Vec<Rule> = rules.iter().map(rule).collect();
        if open == 0 {
            // Else hardly anything would always be allowed.
            let anyone = Rule {
                action: Action::Allow,
                tier: Tier::Platform,
                from: None,
                window: None,
                ..claim.rule.clone()
            };
            rules.push(Rule { to: None, enforcement: Enforcement::Enforce, ..anyone });
        }
        let engine = Engine::new(rules.clone(), domains(), 1);
        // What a claim in these words can leave open: hours, fields, and paths with more readings than one.
        let words = format!("{rules:?}{:?}", claim.rule);
        let depends = words.contains(';')
            || words.contains('%')
            || rules.iter().any(|rule| {
                rule.window.is_some()
                    || rule.condition.is_some()
                    || rule.asks_tokens()
                    || rule.to.iter().flatten().any(|target| !target.headers.is_empty())
            });
        let outcome = prove(&engine, &claim);
        match &outcome {
            Outcome::Proven(classes) => {
                add(0, 1);
                add(3, *classes);
            }
            Outcome::Broken(witness) => {
                add(1, 1);
                let question = question_of(witness);
                prop_assert!(is_about(&claim.rule, &question), "not meant: {witness}");
                if let Some(at) = witness.at {
                    let seconds = u64::try_from(at.as_second()).unwrap();
                    engine.tell_time(UNIX_EPOCH + Duration::from_secs(seconds));
                }
                let effect = check(&engine, &question)?;
                prop_assert_eq!(effect == Effect::Allow, never, "it breaks nothing: {}", witness);
                return Ok(());
            }
            Outcome::Open(witness) => {
                add(2, 1);
                prop_assert!(depends, "nothing was left open, but {witness}");
                return Ok(());
            }
            Outcome::Empty => {}
            Outcome::TooLarge(what) => prop_assert!(false, "{}", what),
        }
        let pools = Pools::of(&rules.iter().chain([&claim.rule]).cloned().collect::<Vec<_>>());
        let mut draw = Draw(seed);
        for n in 0..QUESTIONS {
            if n % (QUESTIONS / 4) == 0 {
                engine
                    .tell_time(UNIX_EPOCH + Duration::from_secs(n as u64 * 86_400 / (QUESTIONS as u64 / 4)));
            }
            let (id, address) = (draw.one_of(&pools.ids).clone(), *draw.one_of(&pools.addresses));
            let question = pools.question(&mut draw, id, address);
            if !is_about(&claim.rule, &question) {
                continue;
            }
            add(4, 1);
            prop_assert!(!matches!(outcome, Outcome::Empty), "said to be about nothing: {question:?}");
            let connection = engine.connection(question.source());
            let verdict = engine.decide(&connection, question.port, question.operation());
            prop_assert_eq!(verdict.is_allowed(), !never, "{:?} against {:?}", question, outcome);
        }
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
    let [proven, broken, open, classes, asked] = counts.map(Cell::into_inner);
    let _ = writeln!(
        std::io::stderr(),
        "proofs: {proven} claims proven over {classes} classes and put to {asked} requests, {broken} broken by a request \
         that does break them, {open} left open"
    );
    let cases = u64::from(cases);
    assert!(proven * 6 > cases && broken * 6 > cases && open * 4 < cases, "{proven} {broken} {open}");
    assert!(asked > 100 * proven, "{asked}");
}

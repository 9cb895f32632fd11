//! Asking only those whom a change may concern leaves the same streams as asking everybody.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::changes::Changes;

static ASKED: AtomicUsize = AtomicUsize::new(0);
static CONCERNED: AtomicUsize = AtomicUsize::new(0);
static TURNED: AtomicUsize = AtomicUsize::new(0);

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_is_judged_otherwise_is_concerned(
        kept in prop::collection::vec(written(), 0..12),
        gone in prop::collection::vec(written(), 0..3),
        come in prop::collection::vec(written(), 0..3),
        again in 0..3_usize,
        questions in prop::collection::vec(question(), 40),
    ) {
        let kept: Vec<Arc<crate::rule::Rule>> = kept.iter().map(|written| Arc::new(rule(written))).collect();
        // Of those that stay, some were read again: the same rule, but another one in memory.
        let read_again = |(n, rule): (usize, &Arc<crate::rule::Rule>)| {
            if again > 0 && n.is_multiple_of(again) { Arc::new(crate::rule::Rule::clone(rule)) } else { Arc::clone(rule) }
        };
        let with = |rules: Vec<Arc<crate::rule::Rule>>, more: &[Written]| {
            rules.into_iter().chain(more.iter().map(|written| Arc::new(rule(written)))).collect::<Vec<_>>()
        };
        let before = Engine::new(with(kept.clone(), &gone), domains(), 1);
        let mut rules = with(kept.iter().enumerate().map(read_again).collect(), &come);
        let by = again.min(rules.len());
        rules.rotate_left(by);
        let after = Engine::new(rules, domains(), 2);
        let changes = Changes::of_engines(&before, &after);
        if gone.is_empty() && come.is_empty() && kept.iter().all(|rule| rule.window.is_none() && rule.condition.is_none()) {
            prop_assert!(changes.are_none());
        }
        for (n, question) in questions.iter().enumerate() {
            // The first half before any time was told, the other when the hour strikes in between.
            if n == 20 {
                before.tell_time(UNIX_EPOCH + Duration::from_secs(86_399));
                after.tell_time(UNIX_EPOCH + Duration::from_secs(86_400));
            }
            let (source, operation) = (question.source(), question.operation());
            let was = before.decide(&before.connection(source), question.port, operation).effect;
            let is = after.decide(&after.connection(source), question.port, operation).effect;
            let concerned = changes.may_concern(source, question.port, operation);
            let turned = (was == Effect::Allow) != (is == Effect::Allow);
            prop_assert!(concerned || !turned, "{:?}: {:?}, then {:?}", question, was, is);
            ASKED.fetch_add(1, Ordering::Relaxed);
            CONCERNED.fetch_add(usize::from(concerned), Ordering::Relaxed);
            TURNED.fetch_add(usize::from(turned), Ordering::Relaxed);
        }
        let [asked, concerned, turned] = [&ASKED, &CONCERNED, &TURNED].map(|count| count.load(Ordering::Relaxed));
        if asked.is_multiple_of(40 * 64) {
            println!("{asked} streams: {concerned} concerned, {turned} judged otherwise");
        }
        // Else everybody would be, and nothing would be proven.
        prop_assert!(asked < 4_000 || (concerned * 4 < asked * 3 && turned > 40));
    }
}

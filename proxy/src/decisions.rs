//! Verdicts by id: what was decided lately, about whom, and by which rule.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use postern_policy::{Generation, Verdict};

use crate::connections::Entry;

/// Denials and allowances kept, each: a flood of one must not push out the other.
const KEPT: usize = 1_024;

/// Names one verdict: `<generation>-<sidecar instance>-<counter>`, the last two in hexadecimal. It tells a caller
/// nothing, and an operator where to look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DecisionId {
    /// The policy generation that answered; 0 if none was in force.
    pub generation: u64,
    instance: u32,
    counter: u64,
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:06x}-{:x}", self.generation, self.instance, self.counter)
    }
}

/// One verdict as it is remembered.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Its id.
    pub id: DecisionId,
    /// When.
    pub at: SystemTime,
    /// About whom and what.
    pub entry: Arc<Entry>,
    /// The answer; `None` if no policy was in force.
    pub verdict: Option<Verdict>,
    /// The rule's full name: for denials, and for allowances of generations that are not kept any more. Other allowances
    /// resolve theirs when they are looked at.
    pub rule: Option<String>,
}

impl Decision {
    /// Whether it was allowed.
    pub fn is_allowed(&self) -> bool {
        self.verdict.is_some_and(|verdict| verdict.is_allowed())
    }
}

/// The last decisions.
#[derive(Debug)]
pub struct DecisionLog {
    instance: u32,
    next: AtomicU64,
    denied: Mutex<VecDeque<Decision>>,
    allowed: Mutex<VecDeque<Decision>>,
}

impl DecisionLog {
    /// An empty log; `instance` tells this run of the sidecar from the one before.
    pub fn new(instance: u32) -> Self {
        Self {
            instance: instance & 0x00ff_ffff,
            next: AtomicU64::new(1),
            denied: Mutex::new(VecDeque::with_capacity(KEPT)),
            allowed: Mutex::new(VecDeque::with_capacity(KEPT)),
        }
    }

    /// The next id.
    pub fn id(&self, generation: u64) -> DecisionId {
        DecisionId { generation, instance: self.instance, counter: self.next.fetch_add(1, Ordering::Relaxed) }
    }

    /// Remembers a decision, forgetting the oldest of its kind.
    pub fn record(&self, decision: Decision) {
        let mut kept = if decision.is_allowed() { self.allowed.lock() } else { self.denied.lock() };
        let forgotten = if kept.len() == KEPT { kept.pop_front() } else { None };
        kept.push_back(decision);
        drop(kept);
        drop(forgotten);
    }

    /// Writes the rules' names to the allowances of a generation that is about to be forgotten, and their names with it.
    pub fn name_rules(&self, forgotten: &Generation) {
        for decision in self.allowed.lock().iter_mut() {
            if decision.id.generation == forgotten.number() && decision.rule.is_none() {
                let rule = decision.verdict.and_then(|verdict| verdict.rule);
                decision.rule = rule.map(|rule| forgotten.rule(rule).to_string());
            }
        }
    }

    /// What is remembered, newest first.
    pub fn recent(&self) -> Vec<Decision> {
        let mut all: Vec<Decision> = self.denied.lock().iter().cloned().collect();
        all.extend(self.allowed.lock().iter().cloned());
        all.sort_by_key(|decision| std::cmp::Reverse(decision.id.counter));
        all
    }
}

//! Tells while glass is broken: when it begins, when it ends, and all the time between.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use postern_policy::{BreakGlass, Generation};

use crate::sidecar::Sidecar;

/// What is open here now, by the document that opens it.
#[derive(Debug, Default)]
pub struct Glass(Mutex<BTreeMap<String, BreakGlass>>);

impl Glass {
    /// What is open now.
    pub fn open(&self) -> BTreeMap<String, BreakGlass> {
        self.0.lock().clone()
    }

    /// Whether anything is.
    pub fn is_broken(&self) -> bool {
        !self.0.lock().is_empty()
    }
}

/// Looks what is open now, and says what changed.
pub fn tell(sidecar: &Sidecar) {
    let policy = sidecar.snapshots.load().policy.clone();
    let now = sidecar.clock.wall();
    let open = policy.as_deref().map(marked).unwrap_or_default();
    let open: BTreeMap<String, BreakGlass> =
        open.into_iter().filter(|(_, glass)| glass.is_open(now)).collect();
    let before = {
        let mut known = sidecar.glass.0.lock();
        if *known == open {
            return;
        }
        std::mem::replace(&mut *known, open.clone())
    };
    sidecar.metrics.policy_open.set(i64::try_from(open.len()).unwrap_or(i64::MAX));
    for (document, glass) in open.iter().filter(|(document, _)| !before.contains_key(*document)) {
        tracing::warn!(
            target: "postern::decision",
            %document, reason = &*glass.reason, by = glass.by.as_deref().unwrap_or("-"),
            until_unix = glass.until,
            "glass is broken: proven peers may call what other policies deny"
        );
    }
    for (document, glass) in before.iter().filter(|(document, _)| !open.contains_key(*document)) {
        tracing::warn!(
            target: "postern::decision",
            %document, reason = &*glass.reason, "glass is whole again"
        );
    }
}

/// The documents that break the glass for this workload, at whatever time.
fn marked(generation: &Generation) -> BTreeMap<String, BreakGlass> {
    let documents = generation.documents().iter().filter(|document| document.applies == Some(true));
    documents
        .filter_map(|document| {
            Some((format!("{}/{}", document.namespace, document.name), document.break_glass.clone()?))
        })
        .collect()
}

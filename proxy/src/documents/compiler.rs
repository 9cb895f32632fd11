//! From what was read to what can be put in force.

use std::sync::Arc;

use parking_lot::Mutex;
use postern_policy::{Diagnostics, Generation, Scope, SourceFile, Workload};

use super::history::Set;
use super::read::Files;
use crate::sidecar::Sidecar;

/// What came of a set.
pub(super) type Loaded = Result<(Arc<Generation>, Set), Diagnostics>;

/// Makes the generation that follows the one in force.
pub(super) struct Compiler {
    pub(super) policies: Arc<Mutex<postern_policy::Loader>>,
    pub(super) scope: Scope,
    /// The new one's.
    pub(super) number: u64,
    /// What an operator opened: it is loaded with the directory's files.
    pub(super) overlays: Vec<SourceFile>,
    /// Files that did not change are shared with it.
    pub(super) last: Option<Arc<Set>>,
}

impl Compiler {
    pub(super) fn compile(self, digest: &str, set: Files) -> Loaded {
        let mut files = set?;
        let own = files.len();
        files.extend(self.overlays);
        let generation = Arc::new(self.policies.lock().load(&files, &self.scope, self.number)?);
        files.truncate(own);
        Ok((generation, Set::sharing(digest.to_owned(), files, self.last.as_deref())))
    }
}

pub(crate) fn scope(sidecar: &Sidecar) -> Scope {
    let config = &sidecar.config;
    Scope {
        trust_domain: config.identity.trust_domain(),
        root_namespace: config.root_namespace.clone(),
        workload: Some(Workload {
            namespace: config.namespace.clone(),
            service_account: config.service_account.clone(),
            labels: config.workload.labels.clone(),
        }),
    }
}

//! An immutable set of documents, compiled for one workload.

use std::collections::BTreeSet;

use crate::diagnostic::Diagnostics;
use crate::explain::Explanation;
use crate::services::Services;
use crate::verdict::{
    Defaults, DenyReason, DocumentSummary, Effect, Operation, RuleId, RuleName, Source, Stage, Verdict,
};

/// An immutable set of documents, compiled for one workload. It answers without locks and without allocating.
#[derive(Debug)]
pub struct Generation {
    pub(crate) number: u64,
    pub(crate) services: Services,
    pub(crate) defaults: Defaults,
    pub(crate) documents: Vec<DocumentSummary>,
    pub(crate) warnings: Diagnostics,
    pub(crate) ports_named: BTreeSet<u16>,
    pub(crate) names: Vec<RuleName>,
}

/// A peer, resolved against one generation.
#[derive(Clone, Debug)]
pub struct Connection {
    generation: u64,
    stage: Stage,
}

impl Connection {
    /// What is certain about every stream of this connection.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The number of the generation that resolved it.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl Generation {
    /// Its number, as given to [`load`](crate::load).
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The services.
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The mesh's defaults.
    pub fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// The documents of the set.
    pub fn documents(&self) -> &[DocumentSummary] {
        &self.documents
    }

    /// What loads but probably does not say what was meant.
    pub fn warnings(&self) -> &Diagnostics {
        &self.warnings
    }

    /// Ports that an Allow rule for this workload names by number. (A Deny rule opens nothing, so a port that only a
    /// Deny rule names is not among them.)
    pub fn ports_named(&self) -> &BTreeSet<u16> {
        &self.ports_named
    }

    /// A rule's name and place.
    ///
    /// # Panics
    ///
    /// If the id comes from another generation.
    pub fn rule(&self, id: RuleId) -> &RuleName {
        &self.names[id.0 as usize]
    }

    /// Resolves a peer, once per connection.
    pub fn connection(&self, _source: Source<'_>) -> Connection {
        Connection { generation: self.number, stage: Stage::Defer }
    }

    /// Judges one stream.
    pub fn decide(&self, _connection: &Connection, _port: u16, _operation: Operation<'_>) -> Verdict {
        Verdict { effect: Effect::Deny(DenyReason::NoRule), rule: None, generation: self.number }
    }

    /// Tells why a question is answered as it is.
    pub fn explain(&self, source: Source<'_>, port: u16, operation: Operation<'_>) -> Explanation {
        let verdict = self.decide(&self.connection(source), port, operation);
        Explanation { verdict, rule: None, nearest: None }
    }
}

//! An immutable set of documents, compiled for one workload.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use crate::crowd;
use crate::diagnostic::Diagnostics;
use crate::egress::{self, Call};
use crate::engine::egress::Egress;
use crate::engine::{Connection, Engine};
use crate::eval_ref;
use crate::explain::{self, Explanation};
use crate::limits::{Asked, Limit, LimitId, LimitName, Limits, Refused};
use crate::load::crowds;
use crate::norm::{CanonPath, EscapedSlashes, NormError};
use crate::rule::PortsJudged;
use crate::services::Services;
use crate::verdict::{Defaults, DocumentSummary, Operation, RuleId, RuleName, Source, Verdict};

/// An immutable set of documents, compiled for one workload. It answers without locks and without allocating.
#[derive(Debug)]
pub struct Generation {
    pub(crate) number: u64,
    pub(crate) services: Arc<Services>,
    pub(crate) defaults: Defaults,
    pub(crate) documents: Vec<DocumentSummary>,
    /// Rules of documents that break the glass, in order.
    pub(crate) glass_rules: Vec<RuleId>,
    /// What was found when the set was loaded.
    pub(crate) warnings: Diagnostics,
    /// That, and what is found when somebody asks.
    pub(crate) told: OnceLock<Diagnostics>,
    pub(crate) ports_named: BTreeSet<u16>,
    pub(crate) headers_named: Vec<Box<str>>,
    pub(crate) paths_judged: PortsJudged,
    pub(crate) sni_judged: PortsJudged,
    pub(crate) asks_tokens: bool,
    /// The mode under which the rules' paths were written.
    pub(crate) nameable: EscapedSlashes,
    pub(crate) names: Vec<Arc<RuleName>>,
    pub(crate) engine: Engine,
    pub(crate) limits: Limits,
    pub(crate) egress: Egress,
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

    /// Whether a rule stands in a document that breaks the glass: what it allows is told, each time.
    pub fn breaks_glass(&self, rule: RuleId) -> bool {
        !self.glass_rules.is_empty() && self.glass_rules.binary_search(&rule).is_ok()
    }

    pub(crate) fn keep_documents(&mut self, documents: Vec<DocumentSummary>) {
        let marked: Vec<&DocumentSummary> =
            documents.iter().filter(|document| document.break_glass.is_some()).collect();
        let is_marked = |name: &RuleName| {
            marked
                .iter()
                .any(|document| *document.namespace == *name.namespace && *document.name == *name.document)
        };
        self.glass_rules = self.rules().filter(|(_, name)| is_marked(name)).map(|(id, _)| id).collect();
        self.documents = documents;
    }

    /// What loads but probably does not say what was meant. The first to ask waits until all rules have been looked at for
    /// crowds.
    pub fn warnings(&self) -> &Diagnostics {
        self.told.get_or_init(|| {
            let mut all = self.warnings.clone();
            for crowd in crowds::of_workload(self) {
                all.push(crowd);
            }
            all.finished()
        })
    }

    /// How many rules one question can make the engine look at, by the key that most of them share: what a decision costs at
    /// worst grows with it, and not with the number of rules.
    pub fn most_candidates(&self) -> usize {
        crowd::most(self.engine.rules.iter().map(|rule| &**rule))
    }

    /// Ports that an Allow rule for this workload names by number. (A Deny rule opens nothing, so a port that only a
    /// Deny rule names is not among them.)
    pub fn ports_named(&self) -> &BTreeSet<u16> {
        &self.ports_named
    }

    /// Header fields that rules for this workload ask for, in lower case.
    pub fn headers_named(&self) -> &[Box<str>] {
        &self.headers_named
    }

    /// Whether rules ask for the server name of TLS at a port of the workload: then it must be read before they are asked.
    pub fn asks_sni(&self, port: u16) -> bool {
        self.sni_judged.at(port)
    }

    /// Whether some rule for this workload asks for tokens: without one nobody needs to read them.
    pub fn asks_tokens(&self) -> bool {
        self.asks_tokens
    }

    /// The rules that concern the workload, in the order of their numbers.
    pub fn rules(&self) -> impl Iterator<Item = (RuleId, &RuleName)> {
        (0..).map(RuleId).zip(self.names.iter().map(|name| &**name))
    }

    /// Refuses a path that would be forwarded in another spelling than the judged one to a port of the workload for which
    /// enforced rules speak of paths: what they say of one spelling must not be taken for the other.
    pub fn check_path(&self, port: u16, path: &CanonPath) -> Result<(), NormError> {
        if path.is_raw() && self.paths_judged.at(port) { Err(NormError::PathRaw) } else { Ok(()) }
    }

    /// A rule's name and place.
    ///
    /// # Panics
    ///
    /// If the id comes from another generation.
    pub fn rule(&self, id: RuleId) -> &RuleName {
        &self.names[id.0 as usize]
    }

    /// Tells the time, for rules that hold at some times only: before the generation answers, and every second or so
    /// from then on. True if that changed what some rule says. Without it such rules are unknown: a Deny fires, an Allow
    /// does not.
    pub fn tell_time(&self, now: SystemTime) -> bool {
        // Both, whatever the first says.
        self.engine.tell_time(now) | self.egress.tell_time(now)
    }

    /// Whether some rule holds at some times only.
    pub fn depends_on_time(&self) -> bool {
        self.engine.depends_on_time() || self.egress.depends_on_time()
    }

    /// Resolves a peer, once per connection.
    pub fn connection(&self, source: Source<'_>) -> Connection {
        self.engine.connection(source)
    }

    /// Judges one stream. A connection that another generation resolved is denied with
    /// [`StaleContext`](crate::DenyReason::StaleContext): resolve it again and ask again.
    pub fn decide(&self, connection: &Connection, port: u16, operation: Operation<'_>) -> Verdict {
        self.engine.decide(connection, port, operation)
    }

    /// Asks the rate limits about a stream that is allowed, and takes it in unless one of them refuses. `now` is counted
    /// from an origin that all generations of a process share, and never goes backwards.
    pub fn admit(
        &self,
        connection: &Connection,
        source: Source<'_>,
        port: u16,
        operation: Operation<'_>,
        now: Duration,
    ) -> Option<Refused> {
        self.limits.admit(Asked { engine: &self.engine, connection, source, port, operation }, now)
    }

    /// The rate limits that match a stream, obeyed or in the shadow; nothing is counted.
    pub fn limits_of(
        &self,
        connection: &Connection,
        source: Source<'_>,
        port: u16,
        operation: Operation<'_>,
    ) -> Vec<&LimitName> {
        let asked = Asked { engine: &self.engine, connection, source, port, operation };
        self.limits.matching(asked).map(|(_, limit)| limit.name()).collect()
    }

    /// The same, by the reference interpreter.
    pub fn limits_by_reference(
        &self,
        source: Source<'_>,
        port: u16,
        operation: Operation<'_>,
    ) -> Vec<&LimitName> {
        let Engine { domains, .. } = &self.engine;
        let at = self.engine.told();
        let matching = |rule| eval_ref::matches_any_view(rule, domains, source, port, operation, at);
        let matching = self.limits.rules().filter(|limit| matching(&limit.rule));
        matching.map(|limit| &limit.name).collect()
    }

    /// The rate limits that concern the workload, with what they have counted.
    pub fn limits(&self) -> impl Iterator<Item = &Limit> {
        self.limits.all.iter()
    }

    /// A limit's name and place.
    ///
    /// # Panics
    ///
    /// If the id comes from another generation.
    pub fn limit(&self, id: LimitId) -> &LimitName {
        self.limits.name(id)
    }

    /// Takes over the buckets of limits that `previous`, which this replaces, has with the same definition; and the counts
    /// of those that it has by the same name. Buckets that nothing takes over are forgotten.
    pub fn inherit_limits(&mut self, previous: &Self) {
        self.limits.inherit(&previous.limits);
    }

    /// Forgets buckets that are full again, so that memory follows traffic: to be called every second or so.
    pub fn tidy_limits(&self, now: Duration) {
        self.limits.sweep(now);
    }

    /// What the reference interpreter answers, rule by rule and slowly. It is the specification: tests, fuzzers and
    /// checkers of recorded traffic hold [`decide`](Self::decide) against it.
    pub fn decide_by_reference(&self, source: Source<'_>, port: u16, operation: Operation<'_>) -> Verdict {
        eval_ref::decide(
            &self.engine.rules,
            &self.engine.domains,
            source,
            port,
            operation,
            self.engine.told(),
        )
        .by(self.number)
    }

    /// Tells why a question is answered as it is.
    pub fn explain(&self, source: Source<'_>, port: u16, operation: Operation<'_>) -> Explanation {
        explain::explain(self, source, port, operation)
    }

    /// Whether calls to `external` services, or to those of the mesh, need a rule: if not, nothing is asked about them.
    pub fn judges_egress(&self, external: bool) -> bool {
        external || self.egress.is_selected() || !self.egress.rules.is_empty()
    }

    /// Refuses a call whose path would be forwarded in another spelling than the judged one, if an obeyed rule about calls
    /// out speaks of paths.
    pub fn check_path_out(&self, path: &CanonPath) -> Result<(), NormError> {
        if path.is_raw() && self.egress.speaks_of_paths { Err(NormError::PathRaw) } else { Ok(()) }
    }

    /// Judges a call on its way out.
    pub fn decide_egress(&self, call: &Call<'_>) -> Verdict {
        self.egress.decide(call)
    }

    /// What the reference interpreter answers to the same: the specification of [`decide_egress`](Self::decide_egress).
    pub fn decide_egress_by_reference(&self, call: &Call<'_>) -> Verdict {
        let Egress { rules, mesh, first, .. } = &self.egress;
        egress::reference::decide(rules, *first, mesh, call, self.egress.told()).by(self.number)
    }

    /// Tells why a call out is answered as it is.
    pub fn explain_egress(&self, call: &Call<'_>) -> Explanation {
        explain::egress::explain(self, call)
    }
}

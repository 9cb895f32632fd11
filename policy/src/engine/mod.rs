//! The compiled engine, behind one seam with the reference interpreter ([`crate::eval_ref`]).
//!
//! Values of rules are interned to small numbers ("keys"). Each rule is filed under the keys of its rarest dimension -
//! who, which path, which port - so that a question looks at one or two candidates however many rules there are. A
//! candidate is then checked in full: the index only ever proposes. Every hash is keyed afresh for each generation, and
//! every hit compares the stored bytes.

mod answer;
mod clause;
mod clock;
mod compile;
pub(crate) mod egress;
mod index;
mod keys;
mod limits;
mod matching;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::cond::Caller;
use crate::limits::LimitRule;
use crate::rule::{OwnDomains, Rule};
use crate::tokens::Tokens;
use crate::verdict::{
    Action, DenyReason, Effect, Enforcement, Operation, RuleId, Source, Stage, Verdict, Would,
};

use answer::{Found, Gathered};
use clock::Clock;
use index::Index;
use keys::Keys;
use limits::CompiledLimit;
use matching::{Compiled, Layer7, Question, What};

#[cfg(test)]
mod tests;

/// Looking further would make opening a connection slow; not knowing yet is always a right answer.
const MAX_STAGE_CANDIDATES: usize = 512;

/// Numbers of generations can repeat (a restart, two directories); contexts must not be mixed up even then.
static NEXT_INSTANCE: AtomicU64 = AtomicU64::new(1);

/// The compiled rules, and the rules themselves for the interpreter and for explanations.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) rules: Vec<Arc<Rule>>,
    pub(crate) domains: OwnDomains,
    generation: u64,
    instance: u64,
    keys: Keys,
    compiled: Vec<Compiled>,
    /// What is obeyed, tier by tier.
    tiers: [Layers; 3],
    /// What is only tried.
    shadow: Option<Box<[Layers; 3]>>,
    audit: Option<Audit>,
    stage: StageIndex,
    clock: Clock,
    limits: Box<[CompiledLimit]>,
    has_conditions: bool,
}

/// With layer 7 and without it: what a rule is filed under differs.
#[derive(Debug)]
struct Layers {
    http: Sides,
    tcp: Sides,
}

/// Audit rules, of all tiers together.
#[derive(Debug)]
struct Audit {
    http: Index,
    tcp: Index,
}

/// One index for each action.
#[derive(Debug, Default)]
struct Sides {
    deny: Index,
    allow: Index,
}

/// Rules by who they mean, whatever else they say.
#[derive(Debug)]
struct StageIndex {
    index: Index,
    /// The lowest rules without `from`, of each tier.
    open_allow: [Option<u32>; 3],
    open_deny: [Option<u32>; 3],
}

/// A peer, resolved against one generation: the keys that are true of it.
#[derive(Clone, Debug)]
pub struct Connection {
    generation: u64,
    instance: u64,
    authenticated: bool,
    /// Sorted.
    keys: Box<[u32]>,
    /// For conditions, if there are any.
    caller: Option<Arc<Caller>>,
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

/// A question, and where to look for its candidates.
struct Lists<'a> {
    connection: &'a Connection,
    port_key: Option<u32>,
    question: &'a Question<'a>,
}

impl Engine {
    pub(crate) fn new<R: Into<Arc<Rule>>>(rules: Vec<R>, domains: OwnDomains, generation: u64) -> Self {
        let rules = rules.into_iter().map(Into::into).collect();
        Self::with_limits(rules, std::iter::empty(), domains, generation)
    }

    pub(crate) fn with_limits<'a>(
        rules: Vec<Arc<Rule>>,
        limits: impl Iterator<Item = &'a LimitRule>,
        domains: OwnDomains,
        generation: u64,
    ) -> Self {
        let instance = NEXT_INSTANCE.fetch_add(1, Ordering::Relaxed);
        compile::compile(rules, limits, domains, generation, instance)
    }

    pub(crate) fn connection(&self, source: Source<'_>) -> Connection {
        let address: IpAddr = source.address.to_canonical();
        let mut connection = Connection {
            generation: self.generation,
            instance: self.instance,
            authenticated: source.identity.is_some(),
            keys: self.keys.of_source(source.identity, address, &self.domains),
            caller: self.has_conditions.then(|| Arc::new(Caller::new(source, &self.domains))),
            stage: Stage::Defer,
        };
        connection.stage = self.stage(&connection);
        connection
    }

    pub(crate) fn decide(&self, connection: &Connection, port: u16, operation: Operation<'_>) -> Verdict {
        if connection.instance != self.instance {
            return self.verdict(Effect::Deny(DenyReason::StaleContext), None);
        }
        let port_key = self.keys.port(port);
        let mut answer = Gathered::default();
        let mut judge = |question: &Question<'_>| {
            let lists = Lists { connection, port_key, question };
            answer.obeyed.add(self.one_view(&lists, None));
            if let Some(shadow) = &self.shadow {
                answer.tried.add(self.one_view(&lists, Some(shadow)));
            }
            if let Some(Audit { http, tcp }) = &self.audit {
                let index = if question.what.is_http() { http } else { tcp };
                answer.audit = [answer.audit, self.first(index, &lists)].into_iter().flatten().min();
            }
        };
        match operation {
            Operation::Tcp => judge(&Question { port, what: What::Tcp, tokens: Tokens::Unknown, operation }),
            Operation::Tls { sni } => {
                let what = What::Tls(self.keys.of_sni(sni));
                judge(&Question { port, what, tokens: Tokens::Unknown, operation });
            }
            Operation::Http { method, path, host, headers, upgrade, tokens } => {
                for view in path.views() {
                    let hits = self.keys.of_request(view, host);
                    let knows_host = host.is_some();
                    let layer7 = Layer7 { method, path: view, host, headers, knows_host, upgrade, hits };
                    judge(&Question { port, what: What::Http(layer7), tokens, operation });
                }
            }
        }
        let (effect, rule) = answer.obeyed.together();
        let shadow = match (&self.shadow, answer.tried.together()) {
            (Some(_), (effect, Some(id)))
                if self.compiled[id as usize].enforcement == Enforcement::Shadow =>
            {
                Some(Would { effect, rule: Some(RuleId(id)) })
            }
            _ => None,
        };
        Verdict { shadow, audit: answer.audit.map(RuleId), ..self.verdict(effect, rule) }
    }

    /// The answer in one reading: the first tier in which a rule fires decides, a Deny before any Allow. With `shadow`,
    /// as if those rules were obeyed too.
    fn one_view(&self, lists: &Lists<'_>, shadow: Option<&[Layers; 3]>) -> Found {
        let is_http = lists.question.what.is_http();
        for (tier, layers) in self.tiers.iter().enumerate() {
            let tried = shadow.map(|shadow| shadow[tier].sides(is_http));
            let first = |side: fn(&Sides) -> &Index| {
                let obeyed = self.first(side(layers.sides(is_http)), lists);
                let tried = tried.and_then(|tried| self.first(side(tried), lists));
                [obeyed, tried].into_iter().flatten().min()
            };
            if let Some(id) = first(|sides| &sides.deny) {
                return Found::Deny((tier, id));
            }
            if let Some(id) = first(|sides| &sides.allow) {
                return Found::Allow(id);
            }
        }
        Found::Nothing
    }

    pub(crate) fn tell_time(&self, now: SystemTime) -> bool {
        self.clock.tell(now)
    }

    /// Seconds since 1970, as told last.
    pub(crate) fn told(&self) -> Option<i64> {
        self.clock.told()
    }

    pub(crate) fn depends_on_time(&self) -> bool {
        !self.clock.is_empty()
    }

    /// The longest list of candidates that one key proposes.
    pub(crate) fn worst_list(&self) -> usize {
        let layers = self.tiers.iter().chain(self.shadow.iter().flat_map(|shadow| shadow.iter()));
        let sides = layers.flat_map(|layers| [&layers.http, &layers.tcp]);
        let indexes = sides.flat_map(|sides| [&sides.deny, &sides.allow]);
        let audit = self.audit.iter().flat_map(|audit| [&audit.http, &audit.tcp]);
        indexes.chain(audit).map(Index::longest).max().unwrap_or(0)
    }

    fn verdict(&self, effect: Effect, rule: Option<u32>) -> Verdict {
        Verdict { effect, rule: rule.map(RuleId), shadow: None, audit: None, generation: self.generation }
    }

    /// The lowest rule of `index` that fires.
    fn first(&self, index: &Index, lists: &Lists<'_>) -> Option<u32> {
        if index.is_empty() {
            return None;
        }
        let Lists { connection, port_key, question } = lists;
        let lists = connection
            .keys
            .iter()
            .chain(question.what.hits())
            .chain(port_key.as_ref())
            .map(|key| index.list(*key));
        let mut best = None;
        for list in lists.chain(std::iter::once(index.rest())) {
            for &id in list {
                if best.is_some_and(|best| id >= best) {
                    break;
                }
                if self.compiled[id as usize].fires(connection, question, &self.clock) {
                    best = Some(id);
                    break;
                }
            }
        }
        best
    }

    /// Certain only if every stream gets the same effect from the same rule: the verdict is logged as the stream's own.
    fn stage(&self, connection: &Connection) -> Stage {
        // What would be, and what is marked, differs from stream to stream.
        if self.shadow.is_some() || self.audit.is_some() {
            return Stage::Defer;
        }
        let mut deny = self.stage.open_deny;
        let mut allow = if connection.authenticated { self.stage.open_allow } else { [None; 3] };
        let lists = connection.keys.iter().map(|key| self.stage.index.list(*key));
        for (looked_at, &id) in lists.chain(std::iter::once(self.stage.index.rest())).flatten().enumerate() {
            if looked_at >= MAX_STAGE_CANDIDATES {
                return Stage::Defer;
            }
            let rule = &self.compiled[id as usize];
            let lowest = match rule.action {
                Action::Allow => &mut allow[rule.tier as usize],
                Action::Deny => &mut deny[rule.tier as usize],
                Action::Audit => continue,
            };
            if lowest.is_none_or(|lowest| id < lowest) && rule.means(connection) {
                *lowest = Some(id);
            }
        }
        // A lower rule that fires on some streams would be the one that is named there, so only the lowest can be certain;
        // and one Deny that fires on some streams leaves no certainty about an Allow, nor either about the next tier.
        let always = |id: u32| self.compiled[id as usize].always_fires();
        for (deny, allow) in deny.into_iter().zip(allow) {
            match (deny, allow) {
                (Some(id), _) if always(id) => {
                    return Stage::Deny(self.verdict(Effect::Deny(DenyReason::Rule), Some(id)));
                }
                (None, Some(id)) if always(id) => return Stage::Allow(self.verdict(Effect::Allow, Some(id))),
                (None, None) => {}
                _ => return Stage::Defer,
            }
        }
        Stage::Deny(self.verdict(Effect::Deny(DenyReason::NoRule), None))
    }
}

impl Layers {
    fn sides(&self, is_http: bool) -> &Sides {
        if is_http { &self.http } else { &self.tcp }
    }
}

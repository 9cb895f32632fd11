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
mod names;
mod packed;

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
use matching::{Asked, Layer7, Question};
use packed::{Packed, head};

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
    packed: Packed,
    /// What is obeyed.
    obeyed: Book,
    /// What is only tried.
    shadow: Option<Box<Book>>,
    audit: Option<Box<Book>>,
    stage: StageIndex,
    clock: Clock,
    limits: Box<[CompiledLimit]>,
    has_conditions: bool,
}

/// Where candidates are found, with layer 7 and without it: what a rule is filed under differs. They stand in the order in
/// which rules are asked.
#[derive(Debug)]
struct Book {
    http: Index,
    tcp: Index,
}

/// What egress rules are found in: one index for each action.
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
            let obeyed = self.first(&self.obeyed, &lists, None);
            answer.obeyed.add(self.found(obeyed));
            if let Some(shadow) = &self.shadow {
                // As if those rules were obeyed too.
                answer.tried.add(self.found(self.first(shadow, &lists, obeyed)));
            }
            if let Some(audit) = &self.audit {
                let found = self.first(audit, &lists, None).map(|at| self.packed.rule(at).id);
                answer.audit = [answer.audit, found].into_iter().flatten().min();
            }
        };
        match operation {
            Operation::Tcp => judge(&Question { port, what: Asked::Tcp, tokens: Tokens::Unknown, operation }),
            Operation::Tls { sni } => {
                let what = Asked::Tls(self.keys.of_sni(sni));
                judge(&Question { port, what, tokens: Tokens::Unknown, operation });
            }
            Operation::Http { method, path, host, headers, upgrade, tokens } => {
                let method_bit = method.bit();
                for view in path.views() {
                    let hits = self.keys.of_request(view, host);
                    let knows_host = host.is_some();
                    let layer7 =
                        Layer7 { method, method_bit, path: view, host, headers, knows_host, upgrade, hits };
                    judge(&Question { port, what: Asked::Http(layer7), tokens, operation });
                }
            }
        }
        let (effect, rule) = answer.obeyed.together();
        let shadow = match (&self.shadow, answer.tried.together()) {
            (Some(_), (effect, Some(id))) if self.rules[id as usize].enforcement == Enforcement::Shadow => {
                Some(Would { effect, rule: Some(RuleId(id)) })
            }
            _ => None,
        };
        Verdict { shadow, audit: answer.audit.map(RuleId), ..self.verdict(effect, rule) }
    }

    /// What the first rule that fires comes to.
    fn found(&self, rule: Option<u32>) -> Found {
        let Some(rule) = rule.map(|at| self.packed.rule(at)) else { return Found::Nothing };
        match rule.action() {
            Action::Allow => Found::Allow(rule.id),
            _ => Found::Deny((rule.tier(), rule.id)),
        }
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
        let books = [Some(&self.obeyed), self.shadow.as_deref(), self.audit.as_deref()];
        let indexes = books.into_iter().flatten().flat_map(|book| [&book.http, &book.tcp]);
        indexes.map(Index::longest).max().unwrap_or(0)
    }

    fn verdict(&self, effect: Effect, rule: Option<u32>) -> Verdict {
        Verdict { effect, rule: rule.map(RuleId), shadow: None, audit: None, generation: self.generation }
    }

    /// The place of the rule that is asked first of those that fire, if it is in front of `before`; else `before`.
    fn first(&self, book: &Book, lists: &Lists<'_>, before: Option<u32>) -> Option<u32> {
        let Lists { connection, port_key, question } = lists;
        let index = if question.what.is_http() { &book.http } else { &book.tcp };
        let mut best = before;
        if index.is_empty() {
            return best;
        }
        let keys = connection.keys.iter().chain(question.what.hits()).chain(port_key.as_ref());
        let lists = keys.map(|key| index.list(*key)).chain(std::iter::once(index.rest()));
        for list in lists {
            for &at in list {
                if best.is_some_and(|best| at >= best) {
                    break;
                }
                if self.packed.fires(&self.packed.rule(at), connection, question, &self.clock) {
                    best = Some(at);
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
        for (looked_at, &at) in lists.chain(std::iter::once(self.stage.index.rest())).flatten().enumerate() {
            if looked_at >= MAX_STAGE_CANDIDATES {
                return Stage::Defer;
            }
            let rule = self.packed.rule(at);
            let lowest = match rule.action() {
                Action::Allow => &mut allow[rule.tier()],
                Action::Deny => &mut deny[rule.tier()],
                Action::Audit => continue,
            };
            if lowest.is_none_or(|lowest| at < lowest) && self.packed.means(&rule, connection) {
                *lowest = Some(at);
            }
        }
        // A lower rule that fires on some streams would be the one that is named there, so only the lowest can be certain;
        // and one Deny that fires on some streams leaves no certainty about an Allow, nor either about the next tier.
        let certain = |at: Option<u32>| {
            at.map(|at| self.packed.rule(at)).filter(|rule| rule.has(head::ALWAYS)).map(|rule| rule.id)
        };
        for (deny, allow) in deny.into_iter().zip(allow) {
            match (deny, allow) {
                (None, None) => {}
                (Some(_), _) => {
                    let Some(id) = certain(deny) else { return Stage::Defer };
                    return Stage::Deny(self.verdict(Effect::Deny(DenyReason::Rule), Some(id)));
                }
                (None, Some(_)) => {
                    let Some(id) = certain(allow) else { return Stage::Defer };
                    return Stage::Allow(self.verdict(Effect::Allow, Some(id)));
                }
            }
        }
        Stage::Deny(self.verdict(Effect::Deny(DenyReason::NoRule), None))
    }
}

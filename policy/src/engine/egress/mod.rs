//! The compiled engine of egress, behind one seam with its specification ([`crate::egress::reference`]).
//!
//! Each rule is filed under the keys of its rarest dimension: where to (service, host, network), which path, which port.
//! A candidate is then checked in full; the index only ever proposes.

mod compile;
mod places;

use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

use super::Sides;
use super::answer::{Found, Gathered};
use super::clock::{Clock, Standing};
use super::index::Index;
use super::keys::{Hits, Keys};
use super::matching::PathKeys;
use crate::egress::address::{Reach, reach};
use crate::egress::rule::Spoken;
use crate::egress::{At, Call, EgressRule, MeshAddresses};
use crate::norm::CanonMethod;
use crate::rule::{self, Methods};
use crate::services::Services;
use crate::verdict::{Action, DenyReason, Effect, Enforcement, Operation, RuleId, Verdict, Would};

use places::{Place, Places};

/// The compiled egress rules, and the rules themselves for the interpreter and for explanations.
#[derive(Debug)]
pub(crate) struct Egress {
    pub(crate) rules: Vec<Arc<EgressRule>>,
    pub(crate) mesh: MeshAddresses,
    /// The number of the first rule: those of AccessPolicies come before.
    pub(crate) first: u32,
    generation: u64,
    keys: Keys,
    places: Places,
    compiled: Vec<Compiled>,
    /// What is obeyed, tier by tier.
    tiers: Tiers,
    /// What is only tried.
    shadow: Option<Box<Tiers>>,
    audit: Option<Layers>,
    /// Whether an obeyed rule makes what nobody lists denied.
    is_selected: bool,
    /// Whether an obeyed rule is about some path and not another.
    pub(crate) speaks_of_paths: bool,
    clock: Clock,
}

type Tiers = [Layers<Sides>; 3];

/// With layer 7 and without it: what a rule is filed under differs.
#[derive(Debug, Default)]
struct Layers<T = Index> {
    http: T,
    opaque: T,
}

/// A rule ready to be checked.
#[derive(Debug)]
struct Compiled {
    action: Action,
    enforcement: Enforcement,
    to: Option<Box<[Goal]>>,
    window: Option<u32>,
}

/// An alternative of `to`.
#[derive(Debug)]
struct Goal {
    whither: Keyed,
    ports: Option<Box<[u16]>>,
    protocol: Option<Spoken>,
    methods: Option<Methods>,
    paths: Option<PathKeys>,
}

/// Where to, by sorted keys.
#[derive(Debug)]
enum Keyed {
    Services(Box<[u32]>),
    Hosts(Box<[u32]>),
    Addresses { nets: Box<[u32]>, except: Box<[IpNet]> },
}

/// One reading of one call.
struct Question<'a> {
    port: u16,
    port_key: Option<u32>,
    spoken: Spoken,
    place: &'a Place,
    /// Keys of hosts and paths.
    hits: Hits,
    /// Method and path; `None` for opaque bytes.
    layer7: Option<(&'a CanonMethod, &'a str)>,
}

impl Egress {
    /// `first` is the number that the first rule bears.
    pub(crate) fn new(
        rules: Vec<Arc<EgressRule>>,
        services: &Services,
        first: usize,
        generation: u64,
    ) -> Self {
        let first = u32::try_from(first).unwrap_or(u32::MAX);
        compile::compile(rules, MeshAddresses::of(services), first, generation)
    }

    /// Whether an EgressPolicy that is obeyed selects the workload.
    pub(crate) fn is_selected(&self) -> bool {
        self.is_selected
    }

    pub(crate) fn decide(&self, call: &Call<'_>) -> Verdict {
        let host = call.port.external.then_some(call.host);
        let (port, spoken) = (call.port.port, Spoken::at(call.port.protocol));
        let port_key = self.keys.port(port);
        let mut answer = Gathered::default();
        for at in call.places() {
            let reach = match at {
                At::Address(to) => reach(to, call.own, &self.mesh),
                At::Mesh | At::Unknown => Reach::ByRule,
            };
            if reach == Reach::Never {
                return self.verdict(Effect::Deny(DenyReason::Address), None);
            }
            let place = self.places.of(&call.port.service, at, reach);
            let question = |hits, layer7| Question { port, port_key, spoken, place: &place, hits, layer7 };
            match call.operation {
                Operation::Tcp | Operation::Tls { .. } => {
                    self.judge(&question(self.keys.of_request("", host), None), &mut answer)
                }
                Operation::Http { method, path, .. } => {
                    for view in path.views() {
                        let hits = self.keys.of_request(view, host);
                        self.judge(&question(hits, Some((method, view))), &mut answer);
                    }
                }
            }
        }
        // Without a rule that selects it, nothing has fired either.
        let (effect, rule) = match (call.port.external, self.is_selected) {
            (false, false) => (Effect::Allow, None),
            _ => answer.obeyed.together(),
        };
        let shadow = match (&self.shadow, answer.tried.together()) {
            (Some(_), (tried, Some(id))) if self.is_shadow(id) => {
                Some(Would { effect: tried, rule: Some(self.id(id)) })
            }
            (Some(_), (tried @ Effect::Deny(DenyReason::NoRule), None)) if effect == Effect::Allow => {
                Some(Would { effect: tried, rule: None })
            }
            _ => None,
        };
        Verdict { shadow, audit: answer.audit.map(|id| self.id(id)), ..self.verdict(effect, rule) }
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
        let tiers = self.tiers.iter().chain(self.shadow.iter().flat_map(|shadow| shadow.iter()));
        let sides = tiers.flat_map(|layers| [&layers.http, &layers.opaque]);
        let indexes = sides.flat_map(|sides| [&sides.deny, &sides.allow]);
        let audit = self.audit.iter().flat_map(|audit| [&audit.http, &audit.opaque]);
        indexes.chain(audit).map(Index::longest).max().unwrap_or(0)
    }

    /// Adds one reading's answers.
    fn judge(&self, question: &Question<'_>, answer: &mut Gathered) {
        answer.obeyed.add(self.one_reading(question, None));
        if let Some(shadow) = &self.shadow {
            answer.tried.add(self.one_reading(question, Some(shadow)));
        }
        if let Some(audit) = &self.audit {
            let found = self.lowest(audit.of(question), question);
            answer.audit = [answer.audit, found].into_iter().flatten().min();
        }
    }

    /// The first tier in which a rule fires decides, a Deny before any Allow. With `shadow`, as if those rules were obeyed
    /// too.
    fn one_reading(&self, question: &Question<'_>, shadow: Option<&Tiers>) -> Found {
        for (tier, layers) in self.tiers.iter().enumerate() {
            let tried = shadow.map(|shadow| shadow[tier].of(question));
            let first = |side: fn(&Sides) -> &Index| {
                let obeyed = self.lowest(side(layers.of(question)), question);
                let tried = tried.and_then(|tried| self.lowest(side(tried), question));
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

    /// The lowest rule of `index` that fires.
    fn lowest(&self, index: &Index, question: &Question<'_>) -> Option<u32> {
        if index.is_empty() {
            return None;
        }
        let keys = question.place.keys().iter().chain(question.hits.as_slice()).chain(&question.port_key);
        let lists = keys.map(|key| index.list(*key)).chain(std::iter::once(index.rest()));
        let mut best: Option<u32> = None;
        for list in lists {
            for &id in list {
                if best.is_some_and(|best| id >= best) {
                    break;
                }
                if self.compiled[id as usize].fires(question, &self.clock) {
                    best = Some(id);
                    break;
                }
            }
        }
        best
    }

    fn is_shadow(&self, id: u32) -> bool {
        self.compiled[id as usize].enforcement == Enforcement::Shadow
    }

    fn id(&self, local: u32) -> RuleId {
        RuleId(self.first.saturating_add(local))
    }

    fn verdict(&self, effect: Effect, rule: Option<u32>) -> Verdict {
        let rule = rule.map(|id| self.id(id));
        Verdict { effect, rule, shadow: None, audit: None, generation: self.generation }
    }
}

impl<T> Layers<T> {
    fn of(&self, question: &Question<'_>) -> &T {
        if question.layer7.is_some() { &self.http } else { &self.opaque }
    }
}

impl Compiled {
    fn fires(&self, question: &Question<'_>, clock: &Clock) -> bool {
        let holds = match self.window.map(|window| clock.standing(window)) {
            None | Some(Standing::Open) => true,
            Some(Standing::Closed) => false,
            Some(Standing::Unknown) => self.action.is_wide(),
        };
        holds
            && self.to.as_ref().is_none_or(|goals| goals.iter().any(|goal| goal.fires(self.action, question)))
    }
}

impl Goal {
    /// Whether the alternative matches, or - for a wide action - can never be known not to.
    fn fires(&self, action: Action, question: &Question<'_>) -> bool {
        let Self { whither, ports, protocol, methods, paths } = self;
        if !ports.as_ref().is_none_or(|ports| ports.contains(&question.port))
            || protocol.is_some_and(|spoken| spoken != question.spoken)
            || !whither.means(action, question)
        {
            return false;
        }
        match question.layer7 {
            None => action.is_wide() || (methods.is_none() && paths.is_none()),
            Some((method, path)) => {
                let matches = |paths: &PathKeys| {
                    let keys = question.hits.as_slice();
                    keys.iter().any(|key| paths.keys.binary_search(key).is_ok())
                        || paths.loose.iter().any(|(pattern, _)| pattern.matches(path))
                };
                Methods::cover(methods.as_ref(), action, method) && paths.as_ref().is_none_or(matches)
            }
        }
    }
}

impl Keyed {
    fn means(&self, action: Action, question: &Question<'_>) -> bool {
        let place = question.place;
        let must_name = place.reach == Reach::ByName && action == Action::Allow;
        let any = |of: &[u32], keys: &[u32]| of.iter().any(|key| keys.binary_search(key).is_ok());
        match self {
            Self::Services(_) | Self::Hosts(_) if must_name => false,
            Self::Services(keys) => any(place.keys(), keys),
            Self::Hosts(keys) => any(question.hits.as_slice(), keys),
            Self::Addresses { nets, except } => match place.at {
                At::Mesh => false,
                At::Unknown => action.is_wide(),
                At::Address(to) => {
                    let is_named = || place.exact.is_some_and(|key| nets.binary_search(&key).is_ok());
                    let is_meant = if must_name { is_named() } else { any(place.keys(), nets) };
                    is_meant && !except.iter().any(|net| rule::contains(net, to))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests;

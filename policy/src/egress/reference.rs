//! The specification of egress: slow, obvious, rule by rule.
//!
//! A call is judged in every reading of its path and for every address that it may be dialled at, and all have to be
//! allowed. As inbound, a Deny fires on true or unknown, an Allow needs true.

use std::sync::Arc;

use super::address::{MeshAddresses, Reach, reach};
use super::rule::{Destination, EgressRule, ServicePattern, Spoken, Whither, is_exactly};
use super::{At, Call};
use crate::eval_ref::{Answer, Truth};
use crate::rule::{self, Methods};
use crate::verdict::{Action, DenyReason, Effect, Enforcement, Operation, RuleId, Tier, Would};

/// Answers by asking every rule; `first` is the number of the first one. `at` is the time, if it has been told.
pub(crate) fn decide(
    rules: &[Arc<EgressRule>],
    first: u32,
    mesh: &MeshAddresses,
    call: &Call<'_>,
    time: Option<i64>,
) -> Answer {
    let is_never = |place: At| matches!(place, At::Address(to) if reach(to, call.own, mesh) == Reach::Never);
    if call.places().any(is_never) {
        return Answer { effect: Effect::Deny(DenyReason::Address), rule: None, shadow: None, audit: None };
    }
    let views: Vec<Option<&str>> = match call.operation {
        Operation::Http { path, .. } => path.views().map(Some).collect(),
        Operation::Tcp | Operation::Tls { .. } => vec![None],
    };
    let readings: Vec<(Option<&str>, At)> =
        views.iter().flat_map(|view| call.places().map(|place| (*view, place))).collect();
    let fires = |rule: &EgressRule, (view, place): (Option<&str>, At)| {
        let by_name = matches!(place, At::Address(to) if reach(to, call.own, mesh) == Reach::ByName);
        match matches(rule, call, view, place, by_name, time) {
            Truth::True => true,
            Truth::Unknown => rule.action.is_wide(),
            Truth::False => false,
        }
    };
    let world = |obeyed: &dyn Fn(&EgressRule) -> bool| {
        let is_selected = rules.iter().any(|rule| obeyed(rule) && rule.action != Action::Audit);
        let lowest = |tier: Tier, action: Action, reading| {
            rules.iter().position(|rule| {
                rule.tier == tier && rule.action == action && obeyed(rule) && fires(rule, reading)
            })
        };
        let answers: Vec<(Effect, Option<usize>)> = readings
            .iter()
            .map(|reading| {
                for tier in Tier::ALL {
                    if let Some(at) = lowest(tier, Action::Deny, *reading) {
                        return (Effect::Deny(DenyReason::Rule), Some(at));
                    }
                    if let Some(at) = lowest(tier, Action::Allow, *reading) {
                        return (Effect::Allow, Some(at));
                    }
                }
                match reading {
                    (_, At::Mesh) if !is_selected => (Effect::Allow, None),
                    _ => (Effect::Deny(DenyReason::NoRule), None),
                }
            })
            .collect();
        // Denied in one reading is denied; of several rules the one that is asked first is named.
        let denied = answers.iter().filter(|(effect, _)| *effect == Effect::Deny(DenyReason::Rule));
        let denied = denied.filter_map(|(_, at)| *at).min_by_key(|at| (rules[*at].tier, *at));
        let unruled = answers.iter().any(|(effect, _)| *effect == Effect::Deny(DenyReason::NoRule));
        match (denied, answers.first()) {
            (Some(at), _) => (Effect::Deny(DenyReason::Rule), Some(at)),
            (None, Some((Effect::Allow, at))) if !unruled => (Effect::Allow, *at),
            _ => (Effect::Deny(DenyReason::NoRule), None),
        }
    };
    let id = |at: usize| RuleId(first.saturating_add(u32::try_from(at).unwrap_or(u32::MAX)));
    let (effect, rule) = world(&|rule| rule.enforcement == Enforcement::Enforce);
    let shadow = match world(&|_| true) {
        (tried, Some(at)) if rules[at].enforcement == Enforcement::Shadow => {
            Some(Would { effect: tried, rule: Some(id(at)) })
        }
        // A shadow that selects the workload takes away what nobody lists.
        (tried @ Effect::Deny(DenyReason::NoRule), None) if effect == Effect::Allow => {
            Some(Would { effect: tried, rule: None })
        }
        _ => None,
    };
    let is_audit =
        |rule: &Arc<EgressRule>| rule.action == Action::Audit && readings.iter().any(|at| fires(rule, *at));
    let audit = rules.iter().position(is_audit).map(id);
    Answer { effect, rule: rule.map(id), shadow, audit }
}

/// Whether a rule is about this reading. `by_name`: an Allow has to name the address itself.
pub(crate) fn matches(
    rule: &EgressRule,
    call: &Call<'_>,
    view: Option<&str>,
    place: At,
    by_name: bool,
    time: Option<i64>,
) -> Truth {
    let EgressRule { action, tier: _, enforcement: _, to, window } = rule;
    let holds = match (window, time) {
        (None, _) => Truth::True,
        (Some(_), None) => Truth::Unknown,
        (Some(window), Some(time)) => window.is_open(time).into(),
    };
    let where_to = match to {
        None => Truth::True,
        Some(list) => list
            .iter()
            .map(|entry| destination(entry, *action, call, view, place, by_name))
            .fold(Truth::False, Truth::or),
    };
    holds.and(where_to)
}

pub(crate) fn destination(
    entry: &Destination,
    action: Action,
    call: &Call<'_>,
    view: Option<&str>,
    place: At,
    by_name: bool,
) -> Truth {
    let Destination { whither, ports, protocol, methods, paths } = entry;
    let on_port = Truth::from(ports.as_ref().is_none_or(|ports| ports.contains(&call.port.port)));
    let spoken = Truth::from(protocol.is_none_or(|spoken| spoken == Spoken::at(call.port.protocol)));
    let method = match (methods, call.operation) {
        (methods, Operation::Http { method, .. }) => {
            Truth::from(Methods::cover(methods.as_ref(), action, method))
        }
        (Some(_), Operation::Tcp | Operation::Tls { .. }) => Truth::Unknown,
        (None, Operation::Tcp | Operation::Tls { .. }) => Truth::True,
    };
    let path = match (paths, view) {
        (Some(patterns), Some(view)) => patterns.iter().any(|pattern| pattern.matches(view)).into(),
        (Some(_), None) => Truth::Unknown,
        (None, _) => Truth::True,
    };
    let there = self::whither(whither, action, call, place, by_name);
    [there, on_port, spoken, method, path].into_iter().fold(Truth::True, Truth::and)
}

pub(crate) fn whither(whither: &Whither, action: Action, call: &Call<'_>, place: At, by_name: bool) -> Truth {
    let must_name = by_name && action == Action::Allow;
    match whither {
        Whither::Services(_) | Whither::Hosts(_) if must_name => Truth::False,
        Whither::Services(list) => {
            let (service, is_meshed) = (&call.port.service, !call.port.external);
            let is_one = list.iter().any(|pattern| match pattern {
                ServicePattern::Meshed => is_meshed,
                ServicePattern::Namespace(namespace) => is_meshed && *namespace == service.namespace,
                ServicePattern::One(name) => name == service,
            });
            is_one.into()
        }
        Whither::Hosts(list) => {
            Truth::from(call.port.external && list.iter().any(|pattern| pattern.matches(call.host)))
        }
        Whither::Addresses { nets, except } => match place {
            At::Mesh => Truth::False,
            At::Unknown => Truth::Unknown,
            At::Address(to) => {
                let is_in = |nets: &[ipnet::IpNet]| nets.iter().any(|net| rule::contains(net, to));
                let is_named = || nets.iter().any(|net| is_exactly(net, to));
                let is_meant = if must_name { is_named() } else { is_in(nets) };
                Truth::from(is_meant && !is_in(except))
            }
        },
    }
}

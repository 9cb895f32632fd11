//! From egress rules to the compiled engine.

use std::sync::Arc;

use super::super::Sides;
use super::super::clock::Clock;
use super::super::compile::{compile_hosts, compile_paths, sorted};
use super::super::index::Drawer;
use super::super::keys::Keys;
use super::places::Places;
use super::{Compiled, Egress, Goal, Keyed, Layers};
use crate::egress::rule::{Destination, Whither};
use crate::egress::{EgressRule, MeshAddresses};
use crate::verdict::{Action, Enforcement};

/// Deny and Allow of each tier, obeyed; the same in the shadow; Audit.
const DRAWERS: usize = 2 * 2 * 3 + 1;

pub(super) fn compile(
    rules: Vec<Arc<EgressRule>>,
    mesh: MeshAddresses,
    first: u32,
    generation: u64,
) -> Egress {
    let (mut keys, mut places, mut clock) = (Keys::default(), Places::default(), Clock::default());
    let compiled: Vec<Compiled> =
        rules.iter().map(|rule| compile_rule(&mut keys, &mut places, &mut clock, rule)).collect();
    let mut drawers: [Layers<Drawer>; DRAWERS] = std::array::from_fn(|_| Layers::default());
    for (id, (rule, ready)) in (0_u32..).zip(rules.iter().zip(&compiled)) {
        let goals = ready.to.as_deref();
        let place = goals.and_then(|goals| place_keys(goals, rule.action, &mut keys, &mut places));
        let path = goals.and_then(path_keys);
        let port = goals.and_then(|goals| port_keys(goals, &mut keys));
        let drawer = &mut drawers[drawer(rule)];
        drawer.http.put(id, [&place, &path, &port].into_iter().filter_map(Option::as_deref));
        // Without layer 7 a Deny by path fires on everything: the path proposes nothing there.
        drawer.opaque.put(id, [&place, &port].into_iter().filter_map(Option::as_deref));
    }
    let count = keys.len();
    let mut filed = drawers
        .into_iter()
        .map(|Layers { http, opaque }| Layers { http: http.file(count), opaque: opaque.file(count) });
    let mut next = || filed.next().unwrap_or_default();
    let mut tier = || {
        let (deny, allow) = (next(), next());
        Layers {
            http: Sides { deny: deny.http, allow: allow.http },
            opaque: Sides { deny: deny.opaque, allow: allow.opaque },
        }
    };
    let tiers = [tier(), tier(), tier()];
    let shadow = Box::new([tier(), tier(), tier()]);
    let audit = next();
    let any = |wanted: fn(&EgressRule) -> bool| rules.iter().any(|rule| wanted(rule));
    let is_selected = any(|rule| rule.enforcement == Enforcement::Enforce && rule.action != Action::Audit);
    let speaks_of_paths = any(|rule| {
        rule.enforcement == Enforcement::Enforce
            && rule.action != Action::Audit
            && rule.to.iter().flatten().any(|to| to.paths.is_some())
    });
    let has_shadow = any(|rule| rule.enforcement == Enforcement::Shadow);
    let has_audit = any(|rule| rule.action == Action::Audit);
    Egress {
        rules,
        mesh,
        first,
        generation,
        keys,
        places,
        compiled,
        tiers,
        shadow: has_shadow.then_some(shadow),
        audit: has_audit.then_some(audit),
        is_selected,
        speaks_of_paths,
        clock,
    }
}

fn drawer(rule: &EgressRule) -> usize {
    let side = match rule.action {
        Action::Audit => return DRAWERS - 1,
        Action::Deny => 0,
        Action::Allow => 1,
    };
    let shadow = usize::from(rule.enforcement == Enforcement::Shadow);
    (shadow * 3 + rule.tier as usize) * 2 + side
}

/// Where each alternative leads. A wide rule about networks fires too where the address is not known.
fn place_keys(goals: &[Goal], action: Action, keys: &mut Keys, places: &mut Places) -> Option<Vec<u32>> {
    let mut out = Vec::new();
    for goal in goals {
        match &goal.whither {
            Keyed::Services(list) | Keyed::Hosts(list) => out.extend_from_slice(list),
            Keyed::Addresses { nets, except: _ } => {
                out.extend_from_slice(nets);
                if action.is_wide() {
                    out.push(places.unknown(keys));
                }
            }
        }
    }
    Some(sorted(out))
}

fn path_keys(goals: &[Goal]) -> Option<Vec<u32>> {
    let mut out = Vec::new();
    for goal in goals {
        let paths = goal.paths.as_ref()?;
        out.extend_from_slice(&paths.keys);
        for (_, wider) in &paths.loose {
            out.push((*wider)?);
        }
    }
    Some(sorted(out))
}

fn port_keys(goals: &[Goal], keys: &mut Keys) -> Option<Vec<u32>> {
    let mut out = Vec::new();
    for goal in goals {
        out.extend(goal.ports.as_ref()?.iter().map(|port| keys.add_port(*port)));
    }
    Some(sorted(out))
}

fn compile_rule(keys: &mut Keys, places: &mut Places, clock: &mut Clock, rule: &EgressRule) -> Compiled {
    let EgressRule { action, tier: _, enforcement, to, window } = rule;
    Compiled {
        action: *action,
        enforcement: *enforcement,
        to: to.as_ref().map(|list| list.iter().map(|entry| goal(keys, places, entry)).collect()),
        window: window.as_ref().map(|window| clock.add(window)),
    }
}

fn goal(keys: &mut Keys, places: &mut Places, entry: &Destination) -> Goal {
    let Destination { whither, ports, protocol, methods, paths } = entry;
    let whither = match whither {
        Whither::Services(list) => {
            Keyed::Services(sorted(list.iter().map(|name| places.service(keys, name)).collect()).into())
        }
        Whither::Hosts(list) => Keyed::Hosts(compile_hosts(keys, list)),
        Whither::Addresses { nets, except } => Keyed::Addresses {
            nets: sorted(nets.iter().map(|net| places.net(keys, *net)).collect()).into(),
            except: except.as_slice().into(),
        },
    };
    Goal {
        whither,
        ports: ports.as_deref().map(Box::from),
        protocol: *protocol,
        methods: methods.clone(),
        paths: paths.as_ref().map(|patterns| compile_paths(keys, patterns)),
    }
}

//! The rules as a proof takes them: what its classes do not know - header fields, tokens, times, conditions,
//! Istio's words - is settled against the claim.
//!
//! More Allows never deny more and more Denies never allow more, whatever the tiers. So of all that fields, tokens and
//! clocks can be, one assumption is the worst: for "never allowed", that every Allow finds the fields and the hour it asks
//! for and no Deny does; for "always allowed" the other way round. What holds under it holds.

use std::sync::Arc;

use crate::norm::CanonMethod;
use crate::rule::{Excluded, ExcludedTarget, Methods, Peer, Rule, Target};
use crate::verdict::{Action, Enforcement};

/// The rules that are obeyed, each at the place that its number says; those that are only tried or mark never fire.
/// `never`: the claim is that something is never allowed.
pub(super) fn relaxed(rules: &[Arc<Rule>], never: bool) -> Vec<Arc<Rule>> {
    rules.iter().map(|rule| Arc::new(one(rule, never))).collect()
}

fn one(rule: &Rule, never: bool) -> Rule {
    let Rule { action, tier, enforcement, target_ports, from, to, window, condition, istio } = rule;
    let fires = match action {
        Action::Allow => never,
        Action::Deny => !never,
        Action::Audit => false,
    };
    let is_obeyed = *enforcement == Enforcement::Enforce && *action != Action::Audit;
    let is_out = !is_obeyed || ((window.is_some() || condition.is_some() || istio.is_some()) && !fires);
    let (from, to) = if is_out {
        // No alternative: it matches nothing.
        (None, Some(Vec::new()))
    } else if istio.is_some() {
        // Its words are of other kinds; whatever they are, it fires no more often than on everything.
        (Some(anybody()), Some(anything()))
    } else {
        let peers = from.as_ref().map(|peers| {
            let known = peers.iter().filter(|peer| fires || !peer.asks_tokens());
            known.map(without_tokens).collect()
        });
        let targets = to.as_ref().map(|targets| {
            let known = targets.iter().filter(|target| fires || !is_free(target));
            known.map(without_free).collect()
        });
        (peers, targets)
    };
    Rule {
        action: *action,
        tier: *tier,
        enforcement: *enforcement,
        target_ports: target_ports.clone(),
        from,
        to,
        window: None,
        condition: None,
        istio: None,
    }
}

fn anybody() -> Vec<Peer> {
    vec![Peer { unauthenticated: true, ..Peer::default() }, Peer::default()]
}

fn anything() -> Vec<Target> {
    let by_name = ["TRACE", "CONNECT"].into_iter().filter_map(|name| CanonMethod::parse(name).ok());
    vec![Target::default(), Target { methods: Some(Methods::Only(by_name.collect())), ..Target::default() }]
}

/// Whoever calls is taken to have the tokens that are asked for, and none that excludes it.
fn without_tokens(peer: &Peer) -> Peer {
    let not = peer.not.as_ref().map(|not| Box::new(Excluded { jwt: None, ..(**not).clone() }));
    Peer { jwt: None, not, ..peer.clone() }
}

/// Whether an alternative asks for what no class says.
pub(super) fn is_free(target: &Target) -> bool {
    let Target { methods: _, paths: _, grpc: _, hosts: _, headers, upgrade: _, sni: _, ports: _, not } =
        target;
    // Taken apart so that a field that somebody adds gets its answer here: nothing of these is free.
    let known = |not: &ExcludedTarget| {
        let ExcludedTarget { methods: _, paths: _, hosts: _, upgrade: _, sni: _, ports: _ } = not;
        true
    };
    !headers.is_empty() || !not.as_deref().is_none_or(known)
}

fn without_free(target: &Target) -> Target {
    if !is_free(target) {
        return target.clone();
    }
    // Of opaque bytes the fields are not known, and an alternative that asks for any method knows as little of them.
    let methods = target.methods.clone().or(Some(Methods::Any));
    Target { methods, headers: Vec::new(), ..target.clone() }
}

//! Why a call out is answered as it is.

use std::net::IpAddr;

use super::failures::{Failure, list, method_failure};
use super::{Explanation, Misfit, Miss, Shadow, propose};
use crate::egress::address::{Reach, reach};
use crate::egress::reference::{destination, matches, whither};
use crate::egress::rule::{Destination, EgressRule, Spoken, Whither};
use crate::egress::{At, Call};
use crate::eval_ref::Truth;
use crate::generation::Generation;
use crate::pattern::PathPattern;
use crate::verdict::{Action, DenyReason, Effect, Enforcement, Operation, RuleName};

/// One reading of a call that no Allow rule lists: its path's, its place's, and whether a rule has to name the address.
type Reading<'a> = (Option<&'a str>, At, bool);

pub(crate) fn explain(generation: &Generation, call: &Call<'_>) -> Explanation {
    let verdict = generation.decide_egress(call);
    let rule = verdict.rule.map(|id| generation.rule(id).clone());
    let readings = match call.operation {
        Operation::Http { path, .. } => path.views().skip(1).map(str::to_owned).collect(),
        Operation::Tcp | Operation::Tls { .. } => Vec::new(),
    };
    let nearest = match verdict.effect {
        Effect::Deny(DenyReason::NoRule) => nearest(generation, call),
        _ => None,
    };
    let shadow = verdict.shadow.map(|would| Shadow {
        allowed: would.effect == Effect::Allow,
        rule: would.rule.map(|rule| generation.rule(rule).clone()),
    });
    let audit = verdict.audit.map(|id| generation.rule(id).clone());
    Explanation {
        verdict,
        untold: Vec::new(),
        rule,
        readings,
        notes: notes(generation, call),
        shadow,
        audit,
        nearest,
        limits: Vec::new(),
    }
}

fn notes(generation: &Generation, call: &Call<'_>) -> Vec<String> {
    let mut out = Vec::new();
    let is_selected = generation.egress.is_selected();
    match (call.port.external, is_selected) {
        (false, false) => {
            out.push(
                "no EgressPolicy selects this workload: it may call every service of the mesh".to_owned(),
            );
        }
        (false, true) => {
            out.push(
                "an EgressPolicy selects this workload: it may call only what some Allow lists".to_owned(),
            );
        }
        (true, _) => {
            out.push(format!(
                "{} is outside of the mesh: it is called only if some Allow of an EgressPolicy lists it",
                call.port.service
            ));
        }
    }
    for place in call.places() {
        let At::Address(to) = place else { continue };
        match reach(to, call.own, &generation.egress.mesh) {
            Reach::Never => out.push(format!("{to} is never dialled outside of the mesh")),
            Reach::ByName => out.push(format!("{to} is dialled only if `cidrs` of an Allow name exactly it")),
            Reach::ByRule => {}
        }
    }
    if call.places().any(|place| place == At::Unknown) {
        out.push(
            "the address is not known here: a Deny by `cidrs` fires, an Allow by `cidrs` does not".to_owned(),
        );
    }
    out
}

/// The Allow rule with the fewest failing fields; of several, the first.
fn nearest(generation: &Generation, call: &Call<'_>) -> Option<Miss> {
    let engine = &generation.egress;
    let grants = |rule: &EgressRule| rule.action == Action::Allow && rule.enforcement == Enforcement::Enforce;
    let time = engine.told();
    let views: Vec<Option<&str>> = match call.operation {
        Operation::Http { path, .. } => path.views().map(Some).collect(),
        Operation::Tcp | Operation::Tls { .. } => vec![None],
    };
    let all = views.iter().flat_map(|view| {
        call.places().map(|place| {
            let by_name =
                matches!(place, At::Address(to) if reach(to, call.own, &engine.mesh) == Reach::ByName);
            (*view, place, by_name)
        })
    });
    let missed: Vec<Reading<'_>> = all
        .filter(|(view, place, by_name)| {
            !engine
                .rules
                .iter()
                .any(|rule| grants(rule) && matches(rule, call, *view, *place, *by_name, time) == Truth::True)
        })
        .collect();
    let names = generation.names.iter().skip(engine.first as usize);
    let allows = engine.rules.iter().zip(names).filter(|(rule, _)| grants(rule));
    let (_, misfit, name) = allows
        .map(|(rule, name)| {
            let (misfit, far) = self::misfit(rule, call, &missed, time);
            (misfit.failed.len() + far, misfit, name)
        })
        .min_by_key(|(distance, _, _)| *distance)?;
    let Misfit { failed, changes } = misfit;
    let change = format!("in rule {name} ({}): {}", name.place, changes.join("; and "));
    Some(Miss { rule: RuleName::clone(name), failed, change })
}

/// What keeps a rule from matching, and how much farther than that it is from what was meant.
fn misfit(rule: &EgressRule, call: &Call<'_>, missed: &[Reading<'_>], time: Option<i64>) -> (Misfit, usize) {
    let EgressRule { action: _, tier: _, enforcement: _, to, window } = rule;
    let mut out = Misfit::default();
    if let Some(window) = window
        && !time.is_some_and(|at| window.is_open(at))
    {
        out.failed.push("it does not hold at this time".to_owned());
        out.changes.push("wait, or add hours to `when`".to_owned());
    }
    // Every other list of services lacks one name only, which says little about a call to what is outside.
    let far = |entry: &Destination| {
        usize::from(call.port.external && matches!(entry.whither, Whither::Services(_)))
    };
    let entries = to.iter().flatten().map(|entry| (failures(entry, call, missed), far(entry)));
    let (failures, far) = entries.min_by_key(|(failures, far)| failures.len() + far).unwrap_or_default();
    out.add(failures, || alternative(call, missed));
    (out, far)
}

/// The narrowest alternative of `to` that lists this call.
fn alternative(call: &Call<'_>, missed: &[Reading<'_>]) -> String {
    let must_name: Vec<IpAddr> = missed
        .iter()
        .filter_map(|(_, place, by_name)| match place {
            At::Address(to) if *by_name => Some(*to),
            _ => None,
        })
        .collect();
    let port = call.port.port;
    let spoken = Spoken::at(call.port.protocol);
    let mut fields = match (call.port.external, must_name.as_slice()) {
        (false, _) => format!("services: [{}], ports: [{port}]", call.port.service),
        (true, []) => {
            format!("hosts: [{}], ports: [{port}], protocol: {spoken}", propose::host(call.host))
        }
        (true, addresses) => {
            let quoted: Vec<String> = addresses.iter().map(|to| format!("\"{to}\"")).collect();
            format!("cidrs: [{}], ports: [{port}], protocol: {spoken}", quoted.join(", "))
        }
    };
    if let Operation::Http { method, .. } = call.operation
        && let Some(method) = propose::method(method)
    {
        fields.push_str(&format!(", methods: [{method}]"));
    }
    format!("add an alternative `{{{fields}}}` to `to`")
}

fn failures(entry: &Destination, call: &Call<'_>, missed: &[Reading<'_>]) -> Vec<Failure> {
    let Destination { whither: to, ports, protocol, methods, paths } = entry;
    let mut out = Vec::new();
    let holds = |reading: &&Reading<'_>| {
        let (view, place, by_name) = **reading;
        destination(entry, Action::Allow, call, view, place, by_name) == Truth::True
    };
    if missed.iter().all(|reading| holds(&reading)) {
        return out;
    }
    let mut places: Vec<(At, bool)> = missed.iter().map(|(_, place, by_name)| (*place, *by_name)).collect();
    places.dedup();
    for (place, by_name) in places {
        if whither(to, Action::Allow, call, place, by_name) != Truth::True {
            out.push(misplaced(to, call, place, by_name));
        }
    }
    let port = call.port.port;
    if let Some(ports) = ports
        && !ports.contains(&port)
    {
        out.push(Failure {
            what: format!("port {port} is not {}", list(ports, "port", "one of the ports")),
            change: Some(format!("add {port} to `ports`")),
        });
    }
    let spoken = Spoken::at(call.port.protocol);
    if let Some(asked) = protocol.filter(|asked| *asked != spoken) {
        out.push(Failure { what: format!("port {port} speaks {spoken}, not {asked}"), change: None });
    }
    match call.operation {
        Operation::Tcp | Operation::Tls { .. } if methods.is_some() || paths.is_some() => out.push(Failure {
            what: "methods and paths are never known of opaque bytes".to_owned(),
            change: None,
        }),
        Operation::Tcp | Operation::Tls { .. } => {}
        Operation::Http { .. } => {
            out.extend(method_failure(methods.as_ref(), call.operation));
            let mut views: Vec<&str> = missed.iter().filter_map(|(view, _, _)| *view).collect();
            views.dedup();
            for view in views {
                let Some(paths) = paths else { continue };
                if !paths.iter().any(|pattern| pattern.matches(view)) {
                    let is_prefix = paths.iter().any(|pattern| matches!(pattern, PathPattern::Prefix(_)));
                    out.push(Failure {
                        what: format!("the path {view} is not {}", list(paths, "", "one of")),
                        change: (!is_prefix).then(|| format!("add {} to `paths`", propose::text(view))),
                    });
                }
            }
        }
    }
    out
}

fn misplaced(to: &Whither, call: &Call<'_>, place: At, by_name: bool) -> Failure {
    let failure = |what: String, change: Option<String>| Failure { what, change };
    let (service, host) = (&call.port.service, call.host.name());
    match (to, place) {
        (Whither::Services(_) | Whither::Hosts(_), At::Address(to)) if by_name => {
            failure(format!("{to} is opened only by an alternative with `cidrs` that names exactly it"), None)
        }
        (Whither::Services(names), _) => failure(
            format!("the service {service} is not {}", list(names, "", "one of")),
            Some(format!("add {service} to `services`")),
        ),
        (Whither::Hosts(_) | Whither::Addresses { .. }, At::Mesh) => {
            failure(format!("{service} is a service of the mesh, which `hosts` and `cidrs` never mean"), None)
        }
        (Whither::Hosts(names), _) => failure(
            format!("the host {host} is not {}", list(names, "", "one of")),
            Some(format!("add {} to `hosts`", propose::host(call.host))),
        ),
        (Whither::Addresses { .. }, At::Unknown) => failure("the address is not known".to_owned(), None),
        (Whither::Addresses { nets, except }, At::Address(to)) => {
            if except.iter().any(|net| crate::rule::contains(net, to)) {
                failure(format!("the address {to} is excepted by {}", list(except, "", "one of")), None)
            } else {
                failure(
                    format!("the address {to} is in none of {}", list(nets, "", "")),
                    Some(format!("add {} to `cidrs`", propose::text(&to.to_string()))),
                )
            }
        }
    }
}

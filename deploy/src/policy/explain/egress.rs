//! `postern policy explain --egress`: which rule decides a call on its way out.

use std::collections::BTreeMap;
use std::process::ExitCode;

use postern_policy::{Call, CallTarget, NotAsked, Operation, Workload, load};

use super::{Args, at, labels};
use crate::policy::{Failure, question, read};
use crate::say;

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let files = read(&args.path)?;
    let (namespace, name) = args
        .from
        .split_once('/')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'))
        .ok_or_else(|| question("--from is the calling workload, namespace/name"))?;
    let labels = match &args.labels {
        Some(text) => labels(text)?,
        None => BTreeMap::from([("app".to_owned(), name.to_owned())]),
    };
    let target = CallTarget::parse(&args.to).map_err(|error| question(format!("--to: {error}")))?;
    let method = match (args.operation.as_slice(), &target.path) {
        ([], _) => "GET",
        ([method], Some(_)) => method,
        ([_], None) => return Err(question("no method is known of what goes through a tunnel")),
        _ => return Err(question("the path is part of --to")),
    };
    let workload = Workload { namespace: namespace.to_owned(), service_account: name.to_owned(), labels };
    let scope = args.set.scope(&files, Some(workload))?;
    let generation = load(&files, &scope, 0)?;
    let _ = generation.tell_time(at(args.at.as_deref())?);
    let port = match generation.called(&target, namespace) {
        Ok(port) => port,
        Err(why) => {
            // Half of it may be known.
            let service = generation.services().service(&target.host, namespace);
            let text = match (why, service) {
                (NotAsked::UnknownService, Some(service)) => {
                    let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
                    format!(
                        "the Service {} has this host, and not port {}: it has {}",
                        service.name,
                        target.port,
                        ports.join(", ")
                    )
                }
                _ => why.to_string(),
            };
            return Ok(not_asked(args, why.label(), &text));
        }
    };
    let request = match generation.call_request(port, &target, method) {
        Ok(request) => request,
        Err(why) => return Ok(not_asked(args, why.label(), &why.to_string())),
    };
    let operation = match &request {
        Some((method, path)) => Operation::http(method, path),
        None => Operation::Tcp,
    };
    let listed = port.addresses();
    let addresses = if args.resolves_to.is_empty() { &listed } else { &args.resolves_to };
    let call = Call { port, host: &target.host, addresses, own: &[], operation };
    let explanation = generation.explain_egress(&call);
    if args.set.json {
        let mut value = serde_json::to_value(&explanation).map_err(question)?;
        value["ok"] = true.into();
        value["service"] = port.service.to_string().into();
        value["port"] = port.port.into();
        say(value);
    } else {
        say(format_args!("{explanation}\njudged: port {} of the service {}", port.port, port.service));
    }
    Ok(if explanation.verdict.is_allowed() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// A call that no rule is asked about is one that does not go out.
fn not_asked(args: &Args, label: &str, why: &str) -> ExitCode {
    if args.set.json {
        let verdict = serde_json::json!({ "allowed": false, "reason": label });
        say(serde_json::json!({ "ok": true, "verdict": verdict, "error": why }));
    } else {
        say(format_args!("denied: the sidecar refuses it before any rule is asked ({label}): {why}"));
    }
    ExitCode::from(1)
}

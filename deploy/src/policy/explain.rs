//! `postern policy explain`: which rule decides a call, or what is missing.

mod egress;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use postern_policy::norm::CanonHost;
use postern_policy::{
    Answer, Declared, Generation, HeaderFields, Question, ServicePort, Source, Told, ToldToken, Upgrade,
    Workload, load,
};
use postern_svid::{Clock as _, SpiffeId, SystemClock, TrustDomain};

use super::{Failure, Set, question, read};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::say;

mod live;

#[derive(clap::Args)]
pub(super) struct Args {
    /// A file or directory of documents; nothing with --sidecar.
    #[arg(value_name = "DOCUMENTS")]
    path: PathBuf,
    /// Ask the sidecar with this admin socket, whose documents are in force; or, with a decision id alone, what it decided.
    #[arg(long, value_name = "SOCKET")]
    sidecar: Option<PathBuf>,
    /// The called workload: namespace/service-account or namespace/service, with a port. With --egress what is called:
    /// `http://HOST[:PORT]/PATH`, `https://HOST[:PORT]` or `tcp://HOST:PORT`.
    #[arg(
        long,
        value_name = "NAMESPACE/NAME[:PORT]|URL",
        required_unless_present = "sidecar",
        default_value = "",
        hide_default_value = true
    )]
    to: String,
    /// Ask about a call on its way out, at the caller's sidecar: --from is the workload, --to a URL, and METHOD may be
    /// given.
    #[arg(long, conflicts_with_all = ["workload_port", "host", "headers", "sidecar"])]
    egress: bool,
    /// With --egress: an address that the host has, as often as there are; nothing is looked up.
    #[arg(long, value_name = "ADDRESS", requires = "egress")]
    resolves_to: Vec<IpAddr>,
    /// The port in --to is the workload's own, whatever ports its Service has.
    #[arg(long)]
    workload_port: bool,
    /// The caller: an id, namespace/service-account, or `unauthenticated`.
    #[arg(
        long,
        value_name = "CALLER",
        required_unless_present = "sidecar",
        default_value = "",
        hide_default_value = true
    )]
    from: String,
    /// The caller's address.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// Labels of the called workload, of the calling one with --egress; k=v,k=v [default: app=NAME].
    #[arg(long)]
    labels: Option<String>,
    /// The host that the request is addressed to [default: not known].
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// A header field, as often as there are; without any, none is known.
    #[arg(long = "header", value_name = "NAME: VALUE")]
    headers: Vec<String>,
    /// What the request asks to turn into: `websocket`, or a name that the port lists.
    #[arg(long, value_name = "NAME")]
    upgrade: Option<String>,
    /// With `tcp`: TLS whose handshake asks for this server name; empty for none.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// The claims of the token that the request carries, as JSON or in a file of JSON; `unverified` for a token that could
    /// not be verified; without it, there is none.
    #[arg(long, value_name = "JSON|FILE|unverified")]
    claims: Option<String>,
    /// At this time, for rules that hold at some times only [default: now].
    #[arg(long, value_name = "2026-11-27T10:00:00Z")]
    at: Option<String>,
    /// A method and a path, or `tcp`.
    #[arg(required_unless_present_any = ["sidecar", "egress"], num_args = 1..=2, value_names = ["METHOD|tcp", "PATH"])]
    operation: Vec<String>,
    #[command(flatten)]
    pub(super) set: Set,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    if let Some(socket) = &args.sidecar {
        return live::ask(args, socket);
    }
    if args.egress {
        return egress::run(args);
    }
    let files = read(&args.path)?;
    let (namespace, name, port) = callee(&args.to)?;
    let labels = match &args.labels {
        Some(text) => labels(text)?,
        None => BTreeMap::from([("app".to_owned(), name.to_owned())]),
    };
    let workload = Workload { namespace: namespace.to_owned(), service_account: name.to_owned(), labels };
    let scope = args.set.scope(&files, Some(workload))?;
    let generation = load(&files, &scope, 0)?;
    let service = generation.services().by_name(namespace, name);
    let ports = service.map(|service| service.ports.as_slice());
    if service.is_some_and(|service| service.external) {
        return Err(question(format!(
            "{namespace}/{name} is outside of the mesh, where no sidecar judges: ask about the call on its way out, with \
             --egress --from NAMESPACE/NAME --to https://HOST"
        )));
    }
    let mut judged = judged_port(ports, &format!("{namespace}/{name}"), port, args.workload_port)?;
    // Another Service may lead to the same workload.
    judged.says = judged.says.or_else(|| generation.services().leading_to_port(namespace, name, judged.port));
    let identity = caller(&args.from, &scope.trust_domain)?;
    let source = Source { identity: identity.as_ref(), address: args.address };
    if let Some(host) = &args.host {
        CanonHost::parse(host).map_err(|error| question(format!("--host: {error}")))?;
    }
    let fields = fields(&args.headers)?;
    let now = at(args.at.as_deref())?;
    let token = args.claims.as_deref().map(claims).transpose();
    let token = token.map_err(|error| question(format!("--claims: {error}")))?;
    let token = token.map_or(ToldToken::Absent, |text| ToldToken::parse(&text));
    let _ = generation.tell_time(now);
    let upgrade = args.upgrade.as_deref().map(Upgrade::parse).transpose();
    let upgrade = upgrade.map_err(|error| question(format!("--upgrade: {error}: {}", error.help())))?;
    let sni = args.sni.as_deref().map(server_name).transpose()?;
    let told = match args.operation.as_slice() {
        [tcp] if tcp.eq_ignore_ascii_case("tcp") => {
            if upgrade.is_some() {
                return Err(question("opaque TCP has no upgrade: leave out --upgrade, or say METHOD /path"));
            }
            if args.claims.is_some() {
                return Err(question("opaque TCP carries no token: leave --claims out, or say METHOD /path"));
            }
            match &sni {
                Some(sni) => Told::Tls { sni: sni.as_ref() },
                None => Told::Tcp,
            }
        }
        // Else it would be a method of that name, which nobody means.
        [tcp, _] if tcp.eq_ignore_ascii_case("tcp") => {
            return Err(question("opaque TCP has no path: say tcp alone, or METHOD /path"));
        }
        [_, _] if sni.is_some() => {
            return Err(question("a request that can be read has no server name of TLS: say tcp with --sni"));
        }
        [method, target] => Told::Http {
            method,
            target,
            host: args.host.as_deref(),
            fields: fields.as_ref(),
            upgrade: upgrade.as_ref(),
            token: &token,
        },
        _ => return Err(question("say METHOD /path, or tcp")),
    };
    let declared = judged.says.map(Declared::from);
    let asked = Question { source, port: judged.port, declared, told, at: Some(now) };
    let answer = generation.answer(&asked);
    let mut beside = Beside::of(&generation, &judged);
    if let (None, Answer::Explained(explanation)) = (&args.labels, &answer)
        && !explanation.verdict.is_allowed()
        && explanation.rule.is_none()
        && explanation.nearest.is_none()
        && explanation.untold.is_empty()
    {
        beside.notes.push(format!(
            "the workload is taken to have the label app={name} alone: if policies select it by others, say --labels"
        ));
    }
    show(&answer, &beside, args.set.json)?;
    Ok(if answer.is_allowed() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// `None`: the handshake asks for none.
fn server_name(text: &str) -> Result<Option<CanonHost>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = CanonHost::parse(text).map_err(|error| question(format!("--sni: {error}")))?;
    match name.port().is_none() && name.address().is_none() {
        true => Ok(Some(name)),
        false => Err(question("--sni: a server name has no port and is no address")),
    }
}

fn at(text: Option<&str>) -> Result<SystemTime, Failure> {
    let Some(text) = text else { return Ok(SystemClock.wall()) };
    OffsetDateTime::parse(text, &Rfc3339)
        .map(SystemTime::from)
        .map_err(|_| question("--at is a point in time like 2026-11-27T10:00:00Z"))
}

/// What `--claims` says: JSON written here or in a file, or `unverified`. As text, for a name that stands twice would be lost
/// in a value. That it is JSON is looked at here: what is none was not meant.
pub(crate) fn claims(text: &str) -> Result<String, String> {
    let written = match text.trim() {
        "unverified" => return Ok(text.trim().to_owned()),
        json if json.starts_with('{') => text.to_owned(),
        file => super::files::claims(file.as_ref())?,
    };
    let read: Result<serde::de::IgnoredAny, _> = serde_json::from_str(&written);
    read.map_err(|error| format!("this is no JSON: {error}"))?;
    Ok(written)
}

fn fields(lines: &[String]) -> Result<Option<HeaderFields>, Failure> {
    let mut out = HeaderFields::new();
    for line in lines {
        let (name, value) =
            line.split_once(':').ok_or_else(|| question("--header is a name, a colon and a value"))?;
        out.push(name.trim(), value.trim())
            .map_err(|error| question(format!("--header {name:?}: {error}")))?;
    }
    Ok((!lines.is_empty()).then_some(out))
}

/// What is told beside an answer.
struct Beside {
    port: u16,
    because: String,
    notes: Vec<String>,
}

impl Beside {
    fn of(generation: &Generation, judged: &Judged<'_>) -> Self {
        let mut notes = Vec::new();
        if judged.says.is_none() && !generation.ports_named().contains(&judged.port) {
            notes.push(format!(
                "no Service leads to port {0}, and no Allow names it: its sidecar answers 421 (port_not_declared) unless \
                 its `workload.ports` declare {0}",
                judged.port
            ));
        }
        if generation.documents().iter().any(|document| document.kind == "EgressPolicy") {
            notes.push(
                "this is the callee's side alone: the caller's must let the call out too, ask with --egress"
                    .to_owned(),
            );
        }
        Self { port: judged.port, because: judged.because.clone(), notes }
    }
}

fn show(answer: &Answer, beside: &Beside, json: bool) -> Result<(), Failure> {
    let Beside { port, because, notes } = beside;
    if json {
        let mut value = serde_json::to_value(answer).map_err(question)?;
        value["ok"] = true.into();
        value["port"] = (*port).into();
        value["portBecause"] = because.as_str().into();
        let told = value["notes"].as_array().cloned().unwrap_or_default();
        let notes: Vec<serde_json::Value> =
            told.into_iter().chain(notes.iter().map(|note| note.as_str().into())).collect();
        if !notes.is_empty() {
            value["notes"] = notes.into();
        }
        say(value);
    } else {
        say(format_args!("{answer}\njudged: port {port} of the workload ({because})"));
        for note in notes {
            say(format_args!("{note}"));
        }
    }
    Ok(())
}

fn callee(text: &str) -> Result<(&str, &str, Option<u16>), Failure> {
    let bad = || {
        let hint = match text.contains('.') || text.contains("://") {
            true => {
                "; a host, or what is outside of the mesh, is asked about on the way out: --egress --from NAMESPACE/NAME --to https://HOST"
            }
            false => "",
        };
        question(format!("--to is namespace/name or namespace/name:port{hint}"))
    };
    let (place, port) = match text.split_once(':') {
        Some((place, port)) => {
            (place, Some(port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(bad)?))
        }
        None => (text, None),
    };
    let (namespace, name) = place.split_once('/').ok_or_else(bad)?;
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err(bad());
    }
    Ok((namespace, name, port))
}

/// The workload's port that a question is about, and how it was found.
struct Judged<'g> {
    port: u16,
    because: String,
    /// The Service's port that leads there, if one does; the workload's own is taken to say the same.
    says: Option<&'g ServicePort>,
}

/// Rules speak of the workload's ports; people remember the service's. A number that is a port of both, but not the same
/// one, is nobody's to guess.
fn judged_port<'g>(
    ports: Option<&'g [ServicePort]>,
    callee: &str,
    port: Option<u16>,
    is_workloads: bool,
) -> Result<Judged<'g>, Failure> {
    let known = ports.unwrap_or_default();
    let of_service = |entry: &'g ServicePort| Judged {
        port: entry.target_port,
        because: format!("the Service's port {}", entry.port),
        says: Some(entry),
    };
    let port = match (port, known) {
        (Some(port), _) => port,
        (None, _) if is_workloads => {
            return Err(question(format!("--workload-port needs a port: say --to {callee}:PORT")));
        }
        (None, [only]) => return Ok(of_service(only)),
        (None, []) => {
            return Err(question(format!("no Service {callee} tells its port: say --to {callee}:PORT")));
        }
        (None, several) => {
            let known: Vec<String> = several.iter().map(|port| port.port.to_string()).collect();
            return Err(question(format!("{callee} has several ports: say one of {}", known.join(", "))));
        }
    };
    let named = known.iter().find(|entry| entry.port == port);
    let reached = known.iter().find(|entry| entry.target_port == port);
    let because = |because: &str| Ok(Judged { port, because: because.to_owned(), says: reached });
    if is_workloads {
        return because("as --workload-port says");
    }
    match (named, reached) {
        (Some(named), Some(reached)) if named.target_port != port => Err(question(format!(
            "{callee}:{port} can mean two ports: the Service's {port} is the workload's {}, and the workload's {port} \
             is the Service's {}. Say --workload-port with the one that is meant: --to {callee}:{} or --to {callee}:{port}",
            named.target_port, reached.port, named.target_port
        ))),
        (Some(named), _) => Ok(of_service(named)),
        (None, _) if ports.is_none() => because("as given: there is no Service of this name"),
        (None, _) => because("as given: it is no port of the Service"),
    }
}

fn caller(text: &str, trust_domain: &TrustDomain) -> Result<Option<SpiffeId>, Failure> {
    if text == "unauthenticated" {
        return Ok(None);
    }
    let id = match text.split_once('/') {
        _ if text.starts_with("spiffe:") => SpiffeId::parse(text),
        Some((namespace, account)) => SpiffeId::service_account(trust_domain, namespace, account),
        None => return Err(question("--from is a SPIFFE id, namespace/service-account or unauthenticated")),
    };
    id.map(Some).map_err(|error| question(format!("--from: {error}")))
}

pub(super) fn labels(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').ok_or_else(|| question("--labels is k=v,k=v"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    text.split(',').filter(|part| !part.is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments() {
        assert!(matches!(callee("shop/orders:80"), Ok(("shop", "orders", Some(80)))));
        assert!(matches!(callee("shop/orders"), Ok(("shop", "orders", None))));
        for bad in ["orders", "shop/", "/orders", "a/b/c", "a/b:0", "a/b:x"] {
            assert!(callee(bad).is_err(), "{bad}");
        }
        let td = TrustDomain::parse("td").unwrap();
        let id = |text| caller(text, &td).ok().flatten().map(|id| id.to_string());
        assert_eq!(id("shop/web").as_deref(), Some("spiffe://td/ns/shop/sa/web"));
        assert_eq!(id("spiffe://else/x").as_deref(), Some("spiffe://else/x"));
        assert!(matches!(caller("unauthenticated", &td), Ok(None)));
        assert!(caller("web", &td).is_err());
        assert!(labels("a=b,c").is_err());
    }
}

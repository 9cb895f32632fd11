//! `postern policy`: check documents and explain decisions, offline. The sidecar's own code does both.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use postern_policy::norm::{CanonMethod, CanonPath};
use postern_policy::{
    Diagnostic, Diagnostics, Explanation, Generation, Operation, Scope, Source, SourceFile, Workload, load,
    trust_domain_of,
};
use postern_svid::{SpiffeId, TrustDomain};

/// As the library bounds a file; one byte more is read so that it can say so.
const MAX_FILE: u64 = postern_policy::yaml::MAX_FILE as u64;

/// Check policy documents and explain decisions.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Read documents as a sidecar would and show every mistake. Exit code 0: they load; 1: a sidecar refuses them.
    Check(Check),
    /// Say which rule decides a request, or what is missing. Exit code 0: allowed; 1: denied; 2: the question or the
    /// documents are wrong.
    Explain(Explain),
}

#[derive(clap::Args)]
struct Check {
    /// Files or directories of documents.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    set: Set,
}

#[derive(clap::Args)]
struct Explain {
    /// A file or directory of documents.
    #[arg(value_name = "DOCUMENTS")]
    path: PathBuf,
    /// The called workload: namespace/service-account or namespace/service, with a port.
    #[arg(long, value_name = "NAMESPACE/NAME[:PORT]")]
    to: String,
    /// The caller: an id, namespace/service-account, or `unauthenticated`.
    #[arg(long, value_name = "CALLER")]
    from: String,
    /// The caller's address.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// Labels of the called workload, k=v,k=v [default: app=NAME].
    #[arg(long)]
    labels: Option<String>,
    /// A method and a path, or `tcp`.
    #[arg(required = true, num_args = 1..=2, value_names = ["METHOD|tcp", "PATH"])]
    operation: Vec<String>,
    #[command(flatten)]
    set: Set,
}

#[derive(clap::Args)]
struct Set {
    /// Machine-readable output.
    #[arg(long)]
    json: bool,
    /// The mesh's trust domain [default: the one that the documents speak of].
    #[arg(long)]
    trust_domain: Option<String>,
    /// The namespace whose documents may speak for the whole mesh.
    #[arg(long, default_value = "postern-system")]
    root_namespace: String,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let (result, json) = match args.verb {
        Verb::Check(args) => (check(&args), args.set.json),
        Verb::Explain(args) => (explain(&args), args.set.json),
    };
    match result {
        Ok(code) => code,
        Err(Failure::Question(message)) => {
            if json {
                println!("{}", serde_json::json!({ "ok": false, "error": message }));
            } else {
                eprintln!("error: {message}");
            }
            ExitCode::from(2)
        }
        Err(Failure::Documents(errors)) => {
            if json {
                println!("{}", serde_json::json!({ "ok": false, "errors": errors }));
            } else {
                eprintln!("{errors}\n\n{}: no answer from these documents", plural(errors.total(), "mistake"));
            }
            ExitCode::from(2)
        }
    }
}

/// Why there is no answer.
enum Failure {
    Question(String),
    Documents(Diagnostics),
}

impl From<Diagnostics> for Failure {
    fn from(errors: Diagnostics) -> Self {
        Self::Documents(errors)
    }
}

fn question(error: impl fmt::Display) -> Failure {
    Failure::Question(error.to_string())
}

fn check(args: &Check) -> Result<ExitCode, Failure> {
    let mut files = Vec::new();
    for path in &args.paths {
        files.extend(read(path).map_err(Failure::Documents)?);
    }
    let scope = args.set.scope(&files, None)?;
    let generation = match load(&files, &scope, 0) {
        Ok(generation) => generation,
        Err(errors) => {
            if args.set.json {
                println!("{}", serde_json::json!({ "ok": false, "errors": errors }));
            } else {
                eprintln!("{errors}\n\n{}: a sidecar refuses this set", plural(errors.total(), "mistake"));
            }
            return Ok(ExitCode::from(1));
        }
    };
    let report = serde_json::json!({
        "ok": true,
        "trustDomain": scope.trust_domain.as_str(),
        "documents": generation.documents(),
        "services": generation.services().iter().collect::<Vec<_>>(),
        "warnings": generation.warnings(),
    });
    if args.set.json {
        println!("{report}");
        return Ok(ExitCode::SUCCESS);
    }
    for warning in generation.warnings() {
        eprintln!("{warning}\n");
    }
    println!("{}", summary(&files, &generation, &scope));
    Ok(ExitCode::SUCCESS)
}

fn summary(files: &[SourceFile], generation: &Generation, scope: &Scope) -> String {
    let documents = generation.documents();
    let policies = documents.iter().filter(|document| document.kind == "AccessPolicy").count();
    let rules: usize = documents.iter().map(|document| document.rules).sum();
    let mut out = format!(
        "ok: {} in {} for trust domain {}: {} with {}, {}",
        plural(documents.len(), "document"),
        plural(files.len(), "file"),
        scope.trust_domain,
        plural(policies, "access policies"),
        plural(rules, "rule"),
        plural(generation.services().len(), "service"),
    );
    if !generation.warnings().is_empty() {
        out.push_str(&format!("; {}", plural(generation.warnings().total(), "warning")));
    }
    out
}

/// `1 rule`, `2 rules`; `access policies` stands for its singular too.
fn plural(count: usize, word: &str) -> String {
    match (count, word.strip_suffix("ies")) {
        (1, Some(stem)) => format!("1 {stem}y"),
        (_, Some(_)) => format!("{count} {word}"),
        (1, None) => format!("1 {word}"),
        (_, None) => format!("{count} {word}s"),
    }
}

impl Set {
    fn scope(&self, files: &[SourceFile], workload: Option<Workload>) -> Result<Scope, Failure> {
        let trust_domain = match &self.trust_domain {
            Some(name) => {
                TrustDomain::parse(name).map_err(|error| question(format!("--trust-domain: {error}")))?
            }
            // Documents that name none cannot depend on it either.
            None => match trust_domain_of(files) {
                Some(found) => found,
                None => TrustDomain::parse("cluster.local").map_err(question)?,
            },
        };
        Ok(Scope { trust_domain, root_namespace: self.root_namespace.clone(), workload })
    }
}

fn explain(args: &Explain) -> Result<ExitCode, Failure> {
    let files = read(&args.path)?;
    let (namespace, name, port) = callee(&args.to)?;
    let labels = match &args.labels {
        Some(text) => labels(text)?,
        None => BTreeMap::from([("app".to_owned(), name.to_owned())]),
    };
    let workload = Workload { namespace: namespace.to_owned(), service_account: name.to_owned(), labels };
    let scope = args.set.scope(&files, Some(workload))?;
    let generation = load(&files, &scope, 0)?;
    let port = target_port(&generation, namespace, name, port)?;
    let identity = caller(&args.from, &scope.trust_domain)?;
    let source = Source { identity: identity.as_ref(), address: args.address };
    let explanation = match args.operation.as_slice() {
        [tcp] if tcp.eq_ignore_ascii_case("tcp") => generation.explain(source, port, Operation::Tcp),
        [method, path] => {
            let method = CanonMethod::parse(method).map_err(question)?;
            match CanonPath::parse_for(&method, path, &generation.defaults().path) {
                Ok(path) => generation.explain(
                    source,
                    port,
                    Operation::Http { method: &method, path: &path, upgrade: None },
                ),
                Err(error) => return Err(question(format!("answered with 400 before any rule: {error}"))),
            }
        }
        _ => return Err(question("say METHOD /path, or tcp")),
    };
    show(&explanation, args.set.json, port)?;
    Ok(if explanation.verdict.is_allowed() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn show(explanation: &Explanation, json: bool, port: u16) -> Result<(), Failure> {
    if json {
        let mut value = serde_json::to_value(explanation).map_err(question)?;
        value["ok"] = true.into();
        value["port"] = port.into();
        println!("{value}");
    } else {
        println!("{explanation}");
    }
    Ok(())
}

fn callee(text: &str) -> Result<(&str, &str, Option<u16>), Failure> {
    let bad = || question("--to is namespace/name or namespace/name:port");
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

/// Rules speak of the workload's ports; people remember the service's.
fn target_port(
    generation: &Generation,
    namespace: &str,
    name: &str,
    port: Option<u16>,
) -> Result<u16, Failure> {
    let service = generation.services().by_name(namespace, name);
    let ports = service.map_or(&[][..], |service| service.ports.as_slice());
    match (port, ports) {
        (Some(port), _) => {
            Ok(ports.iter().find(|known| known.port == port).map_or(port, |known| known.target_port))
        }
        (None, [only]) => Ok(only.target_port),
        (None, []) => Err(question(format!(
            "no Service {namespace}/{name} tells its port: say --to {namespace}/{name}:PORT"
        ))),
        (None, several) => {
            let known: Vec<String> = several.iter().map(|port| port.port.to_string()).collect();
            Err(question(format!("{namespace}/{name} has several ports: say one of {}", known.join(", "))))
        }
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

fn labels(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').ok_or_else(|| question("--labels is k=v,k=v"))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    text.split(',').filter(|part| !part.is_empty()).map(pair).collect()
}

fn read(path: &Path) -> Result<Vec<SourceFile>, Diagnostics> {
    if path.is_dir() { read_directory(path) } else { Ok(vec![read_file(path)?]) }
}

/// The documents of a directory, read by the sidecar's own code.
fn read_directory(path: &Path) -> Result<Vec<SourceFile>, Diagnostics> {
    let files = postern_proxy::documents::read_directory(path)?;
    if files.is_empty() {
        let nothing = Diagnostic::whole(&path.display().to_string(), "the directory holds no documents")
            .with_help("documents are files whose names end in .yaml or .yml");
        return Err(nothing.into());
    }
    Ok(files)
}

fn read_file(path: &Path) -> Result<SourceFile, Diagnostics> {
    use std::io::Read;
    let name = path.display().to_string();
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text));
    match read {
        Ok(_) => Ok(SourceFile { name, text }),
        Err(error) => Err(Diagnostic::whole(&name, error.to_string()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(plural(1, "access policies"), "1 access policy");
        assert_eq!(plural(2, "access policies"), "2 access policies");
        assert_eq!(plural(1, "rule"), "1 rule");
        assert_eq!(plural(0, "rule"), "0 rules");
    }

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

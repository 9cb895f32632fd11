//! `postern policy`: check documents, test them and explain decisions, with the sidecar's own code; and ask or steer
//! sidecars that run.

mod check;
mod explain;
mod export;
mod files;
mod fmt;
mod import;
pub(crate) mod json;
mod live;
mod open;
mod rollback;
mod schema;
mod test;

use std::fmt::Display;
use std::process::ExitCode;

use postern_policy::{Diagnostic, Diagnostics, Scope, SourceFile, Workload, trust_domain_of};
use postern_svid::TrustDomain;

use files::{read, read_all};

pub(crate) use explain::claims;
#[cfg(test)]
pub(crate) use schema::schema;

/// Check and test policy documents, and explain decisions.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Read documents as a sidecar would and show every mistake. Exit code 0: they load; 1: a sidecar refuses them.
    Check(check::Args),
    /// Say which rule decides a request, or what is missing. Exit code 0: allowed; 1: denied; 2: the question or the
    /// documents are wrong.
    Explain(Box<explain::Args>),
    /// Write the rules for a workload in another program's words.
    Export(export::Args),
    /// Rewrite documents in the one way to write them; what they say stays. Exit code 0: done; 1: a file would change
    /// (`--check`), is no YAML, or was left alone; 2: the command line is wrong or a file cannot be read.
    Fmt(fmt::Args),
    /// Rewrite another mesh's policies in ours.
    Import(import::Args),
    /// Break the glass: proven peers may call a namespace, for a while and for a reason. Exit code 0: done; 1: refused; 2: the
    /// question is wrong.
    Open(open::Args),
    /// Put earlier documents back in force at running sidecars, or follow the directory again. Exit code 0: done; 1: one
    /// sidecar refused; 2: the question is wrong.
    Rollback(rollback::Args),
    /// Print the JSON Schema of documents, for editors and pipelines.
    Schema(schema::Args),
    /// Run the PolicyTests of a set against its rules. Exit code 0: every case passes; 1: one fails, there is none, a
    /// sidecar refuses the set, or too few rules are covered.
    Test(test::Args),
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
        Verb::Check(args) => (check::run(&args), args.set.json),
        Verb::Explain(args) => (explain::run(&args), args.set.json),
        Verb::Export(args) => {
            let export::Program::Envoy(envoy) = &args.program;
            (export::run(&args), envoy.set.json)
        }
        Verb::Fmt(args) => (fmt::run(&args), args.json),
        Verb::Import(args) => {
            let import::Mesh::Istio(istio) = &args.mesh;
            (import::run(&args), istio.set.json)
        }
        Verb::Open(args) => (open::run(&args), args.json),
        Verb::Rollback(args) => (rollback::run(&args), args.json),
        Verb::Schema(args) => (schema::run(&args), args.json),
        Verb::Test(args) => (test::run(&args), args.set.json),
    };
    match result {
        Ok(code) => return code,
        Err(failure) if json => json::say_errors(&failure.errors()),
        Err(Failure::Question(message)) => eprintln!("error: {message}"),
        Err(Failure::Documents(errors)) => {
            eprintln!("{errors}\n\n{}: no answer from these documents", plural(errors.total(), "mistake"));
        }
    }
    ExitCode::from(2)
}

/// Why there is no answer.
enum Failure {
    Question(String),
    Documents(Diagnostics),
}

impl Failure {
    fn errors(self) -> Diagnostics {
        match self {
            Self::Question(message) => Diagnostic::whole("", message).into(),
            Self::Documents(errors) => errors,
        }
    }
}

impl From<Diagnostics> for Failure {
    fn from(errors: Diagnostics) -> Self {
        Self::Documents(errors)
    }
}

fn question(error: impl Display) -> Failure {
    Failure::Question(error.to_string())
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

/// Shows what is wrong with a set, and what that means.
fn refused(errors: &Diagnostics, json: bool, meaning: &str) -> ExitCode {
    if json {
        json::say_errors(errors);
    } else {
        eprintln!("{errors}\n\n{}: {meaning}", plural(errors.total(), "mistake"));
    }
    ExitCode::from(1)
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
}

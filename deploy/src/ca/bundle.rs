//! `postern ca bundle`: the trust bundle, for those outside of the mesh.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use postern_ca::bundle::{REFRESH_HINT, stored};
use postern_ca::store::Sqlite;
use postern_svid::{Document, TrustDomain};

use super::{Place, failed, has_ca};
use crate::say;

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Print it: what another trust domain is given to begin with, and what the bundle endpoint serves.
    Show {
        /// A SPIFFE bundle document, roots and JWT keys; or the roots alone as PEM.
        #[arg(long, value_enum, default_value = "spiffe")]
        format: Format,
        /// The same as --format spiffe.
        #[arg(long, conflicts_with = "format")]
        json: bool,
        #[command(flatten)]
        place: Place,
        /// The trust domain, with --state-dir.
        #[arg(long, value_name = "NAME", required_unless_present = "config", conflicts_with = "config")]
        trust_domain: Option<TrustDomain>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Spiffe,
    Pem,
}

pub(super) fn run(verb: Verb) -> ExitCode {
    let Verb::Show { format, json: _, place, trust_domain } = verb;
    let (directory, trust_domain) = match place.resolve(trust_domain) {
        Ok(found) => found,
        Err(code) => return code,
    };
    if !has_ca(&directory) {
        return failed(format!("{}: no CA has been here yet; start postern control", directory.display()));
    }
    let read = Sqlite::open(&directory, &trust_domain)
        .map_err(|error| error.to_string())
        .and_then(|store| stored(&store, &trust_domain).map_err(|error| error.to_string()));
    match (read, format) {
        (Ok(bundle), Format::Spiffe) => say(format_args!("{}", Document::of(&bundle, REFRESH_HINT))),
        (Ok(bundle), Format::Pem) => say(format_args!("{}", bundle.to_pem().trim_end())),
        (Err(error), _) => return failed(error),
    }
    ExitCode::SUCCESS
}

//! `postern ca`: join tokens, registrations, the ledger, what the CA holds, its roots and what is revoked. Works on the state
//! directory, whether a control plane runs on it or not. A database is made only where the trust domain is said in so many words, by a configuration or `--trust-domain`: a
//! mistyped directory must not become a CA that nobody asks, nor an id bind a directory to its trust domain for good.

mod backup;
mod bundle;
mod clock;
mod drill;
mod init;
mod keys;
mod ledger;
mod mesh_admin;
mod offline;
mod registration;
mod replicas;
mod revoke;
mod root;
mod status;
mod tier;

use std::fmt::Display;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use postern_ca::store::{Sqlite, StoreError};
use postern_ca::token::{self, Draft};
use postern_control::Config;
use postern_policy::Diagnostic;
use postern_policy::yaml::Span;
use postern_svid::{Clock, SpiffeId, SystemClock, TrustDomain};

use crate::policy::json;
use crate::say;

/// The certificate authority: join tokens and what it has issued.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Join tokens: each lets one workload fetch its first certificate.
    Token {
        #[command(subcommand)]
        verb: TokenVerb,
    },
    /// Save the whole CA in one sealed file, while the control plane runs.
    Backup(backup::BackupArgs),
    /// Make the CA, with a new root, an existing one, or an offline one.
    Init(init::Args),
    /// How the CA's keys rest: sealed with a secret that is not in the state directory, or plain files.
    Keys {
        #[command(subcommand)]
        verb: keys::Verb,
    },
    /// The issuance ledger: everything that the CA has issued, unchangeably.
    Ledger {
        #[command(subcommand)]
        verb: ledger::Verb,
    },
    /// Put a backup back into an empty state directory.
    Restore(backup::RestoreArgs),
    /// Registrations: which attested facts are granted which ids.
    Registration {
        #[command(subcommand)]
        verb: registration::Verb,
    },
    /// The trust bundle, for those outside of the mesh.
    Bundle {
        #[command(subcommand)]
        verb: bundle::Verb,
    },
    /// The CAs as a tree, who holds which trust bundle, and what a rotation waits for.
    Status(status::Args),
    /// Sidecars that have not acknowledged a version of the trust bundle.
    Who(status::WhoArgs),
    /// Steps of the rotation of the root; and what an offline root does.
    Root {
        #[command(subcommand)]
        verb: root::Verb,
    },
    /// Replicas of the control plane.
    Replicas {
        #[command(subcommand)]
        verb: replicas::Verb,
    },
    /// The tier between an offline root and the issuing CAs.
    Tier {
        #[command(subcommand)]
        verb: tier::Verb,
    },
    /// The machine's clock, as the CA sees it.
    Clock {
        #[command(subcommand)]
        verb: clock::Verb,
    },
    /// Rehearse a rotation on a copy, with a clock that runs ahead.
    Drill {
        #[command(subcommand)]
        verb: drill::Verb,
    },
    /// A CA whose key may be stolen: replace it, have everybody renew, refuse all that it has signed. There is no way back.
    Taint(revoke::TaintArgs),
    /// Refuse certificates by id, serial number or key, everywhere, open connections included.
    Deny {
        #[command(subcommand)]
        whom: revoke::Whom,
    },
    /// Take an entry off the deny list.
    AllowAgain {
        #[command(subcommand)]
        whom: revoke::Whom,
    },
}

#[derive(Subcommand)]
enum TokenVerb {
    /// Make a token and write it to a new file that only you can read.
    Create {
        /// The SPIFFE id that it stands for.
        #[arg(long, value_name = "SPIFFE-ID")]
        id: SpiffeId,
        /// How long it can be used, at most 24h.
        #[arg(long, value_name = "TIME", default_value = "10m", value_parser = ttl)]
        ttl: Duration,
        /// The file to write; it must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        #[command(flatten)]
        place: Place,
        /// The trust domain, with --state-dir; needed only before the control plane has started there for the first time.
        #[arg(long, value_name = "NAME", conflicts_with = "config")]
        trust_domain: Option<TrustDomain>,
    },
}

/// Where the CA's state is.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Place {
    /// The control plane's configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The control plane's state directory.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// A state directory and its trust domain.
#[derive(clap::Args)]
struct Of {
    #[command(flatten)]
    place: Place,
    /// The trust domain, with --state-dir.
    #[arg(long, value_name = "NAME", required_unless_present = "config", conflicts_with = "config")]
    trust_domain: Option<TrustDomain>,
}

/// The running control plane.
#[derive(clap::Args)]
struct Admin {
    /// Its mesh admin endpoint, if not the configuration's or http://127.0.0.1:24192.
    #[arg(long, value_name = "URL", value_parser = mesh_admin::parse)]
    admin: Option<SocketAddr>,
}

/// Where the running control plane's configuration is, if it matters.
#[derive(clap::Args)]
struct Anywhere {
    /// The control plane's configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> ExitCode {
    match args.verb {
        Verb::Token { verb: TokenVerb::Create { id, ttl, out, place, trust_domain } } => {
            create(&id, ttl, &out, place, trust_domain)
        }
        Verb::Backup(args) => backup::backup(args),
        Verb::Init(args) => init::run(args),
        Verb::Keys { verb } => keys::run(verb),
        Verb::Bundle { verb } => bundle::run(verb),
        Verb::Ledger { verb } => ledger::run(verb),
        Verb::Restore(args) => backup::restore(args),
        Verb::Registration { verb } => registration::run(verb),
        Verb::Status(args) => status::run(args),
        Verb::Who(args) => status::who(args),
        Verb::Root { verb } => root::run(verb),
        Verb::Replicas { verb } => replicas::run(verb),
        Verb::Tier { verb } => tier::run(verb),
        Verb::Clock { verb } => clock::run(verb),
        Verb::Drill { verb } => drill::run(verb),
        Verb::Taint(args) => revoke::taint(args),
        Verb::Deny { whom } => revoke::deny(whom),
        Verb::AllowAgain { whom } => revoke::allow_again(whom),
    }
}

fn create(
    id: &SpiffeId,
    ttl: Duration,
    out: &Path,
    place: Place,
    trust_domain: Option<TrustDomain>,
) -> ExitCode {
    let is_named = place.config.is_some() || trust_domain.is_some();
    // Where a CA is, its database refuses any other trust domain than its own.
    let (directory, trust_domain) = match place.resolve(trust_domain.or_else(|| Some(id.trust_domain()))) {
        Ok(found) => found,
        Err(code) => return code,
    };
    if !is_named && !has_ca(&directory) {
        return failed(format!(
            "{}: no CA has been here yet; check --state-dir, start postern control first, or name its --trust-domain to begin one here",
            directory.display()
        ));
    }
    // Id and file first: a run that fails leaves no database behind.
    let made = Draft::write(&trust_domain, id, ttl, SystemClock.wall(), out).and_then(|draft| {
        let store = Sqlite::open(&directory, &trust_domain)?;
        draft.enter(&store)
    });
    match made {
        Ok(()) => {
            say(format_args!(
                "{}: a join token for {id}, to be used once within {} s",
                out.display(),
                ttl.as_secs()
            ));
            ExitCode::SUCCESS
        }
        Err(error) => failed(error),
    }
}

/// Opening a store makes one; this only looks. What cannot be looked at may be one: opening it says what is in the way.
fn has_ca(directory: &Path) -> bool {
    let found = std::fs::metadata(directory.join(postern_ca::store::DATABASE));
    !found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

impl Of {
    /// The store, which must be there.
    fn store(self) -> Result<Result<Sqlite, StoreError>, ExitCode> {
        Ok(self.store_and_domain()?.map(|(store, _)| store))
    }

    /// The store, which must be there, and whose it is.
    fn store_and_domain(self) -> Result<Result<(Sqlite, TrustDomain), StoreError>, ExitCode> {
        let (directory, trust_domain) = self.place.resolve(self.trust_domain)?;
        if !has_ca(&directory) {
            let text = format!("{}: no CA has been here yet; start postern control", directory.display());
            return Ok(Err(StoreError::File(text)));
        }
        Ok(Sqlite::open(&directory, &trust_domain).map(|store| (store, trust_domain)))
    }
}

impl Anywhere {
    fn admin(self, told: Option<SocketAddr>) -> Result<SocketAddr, ExitCode> {
        match (told, self.config) {
            (Some(told), _) => Ok(told),
            (None, Some(config)) => load(&config).map(|config| config.mesh_admin),
            (None, None) => Ok(MESH_ADMIN.into()),
        }
    }
}

/// Where the mesh admin endpoint listens unless told otherwise.
const MESH_ADMIN: ([u8; 4], u16) = ([127, 0, 0, 1], 24_192);

fn load(config: &Path) -> Result<Config, ExitCode> {
    Config::load(config).map_err(misused)
}

impl Place {
    /// The state directory, for what needs no trust domain.
    fn directory(self) -> Result<PathBuf, ExitCode> {
        match self.state_dir {
            Some(directory) => Ok(directory),
            None => self.resolve(None).map(|(directory, _)| directory),
        }
    }

    /// The state directory and its trust domain; `told` stands when no configuration names one.
    fn resolve(self, told: Option<TrustDomain>) -> Result<(PathBuf, TrustDomain), ExitCode> {
        self.resolve_all(told, None).map(|(directory, trust_domain, _)| (directory, trust_domain))
    }

    /// As [`resolve`](Self::resolve), with the mesh admin endpoint.
    fn resolve_all(
        self,
        told: Option<TrustDomain>,
        admin: Option<SocketAddr>,
    ) -> Result<(PathBuf, TrustDomain, SocketAddr), ExitCode> {
        match (self.config, self.state_dir.zip(told)) {
            (Some(config), _) => load(&config)
                .map(|config| (config.state_dir, config.trust_domain, admin.unwrap_or(config.mesh_admin))),
            (None, Some((directory, td))) => Ok((directory, td, admin.unwrap_or_else(|| MESH_ADMIN.into()))),
            // The command line's grammar demands them.
            (None, None) => Err(ExitCode::from(2)),
        }
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    let Some(Span(ttl)) = Span::parse(text) else {
        return Err("a length of time is written as 30s, 10m or 1h".to_owned());
    };
    if ttl < token::MIN_TTL || ttl > token::MAX_TTL {
        return Err(format!(
            "from {} s to {} h: a token is for the next few minutes",
            token::MIN_TTL.as_secs(),
            token::MAX_TTL.as_secs() / 3_600
        ));
    }
    Ok(ttl)
}

/// Writes a file that must be new, for everybody to read.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), ExitCode> {
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).open(path);
    let written = opened.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|error| failed(format_args!("{}: {error}", path.display())))
}

fn failed(error: impl Display) -> ExitCode {
    refused(error, ExitCode::FAILURE)
}

/// What the command line or the configuration asks for is none of what can be done.
fn misused(error: impl Display) -> ExitCode {
    refused(error, ExitCode::from(2))
}

/// Tells why nothing came of a verb: where JSON is asked for, by a document in place of the answer.
fn refused(error: impl Display, code: ExitCode) -> ExitCode {
    if is_json() {
        json::say_errors(&Diagnostic::whole("", error.to_string()).into());
    } else {
        eprintln!("postern ca: {error}");
    }
    code
}

/// Whether the command line asks for JSON, whatever the verb.
fn is_json() -> bool {
    json::is_asked_for(std::env::args_os())
}

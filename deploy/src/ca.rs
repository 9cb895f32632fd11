//! `postern ca`: join tokens, registrations, the ledger and what the CA holds. Works on the state directory, whether a control plane runs on it or
//! not. A database is made only where the trust domain is said in so many words, by a configuration or `--trust-domain`: a
//! mistyped directory must not become a CA that nobody asks, nor an id bind a directory to its trust domain for good.

mod backup;
mod init;
mod keys;
mod ledger;
mod registration;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Subcommand;
use postern_ca::store::{Kind, Sqlite, State, Store};
use postern_ca::token::{self, Draft};
use postern_control::Config;
use postern_policy::yaml::Span;
use postern_svid::{Clock, SpiffeId, SystemClock, TrustDomain};

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
    /// Make the CA, with a new root or an existing one.
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
    /// The CAs, and how many certificates and tokens there are.
    Status {
        #[command(flatten)]
        place: Place,
        /// The trust domain, with --state-dir.
        #[arg(long, value_name = "NAME", required_unless_present = "config", conflicts_with = "config")]
        trust_domain: Option<TrustDomain>,
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

pub(crate) fn run(args: Args) -> ExitCode {
    match args.verb {
        Verb::Token { verb: TokenVerb::Create { id, ttl, out, place, trust_domain } } => {
            create(&id, ttl, &out, place, trust_domain)
        }
        Verb::Backup(args) => backup::backup(args),
        Verb::Init(args) => init::run(args),
        Verb::Keys { verb } => keys::run(verb),
        Verb::Ledger { verb } => ledger::run(verb),
        Verb::Restore(args) => backup::restore(args),
        Verb::Registration { verb } => registration::run(verb),
        Verb::Status { place, trust_domain } => status(place, trust_domain),
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

/// Opening a store makes one; this only looks.
fn has_ca(directory: &Path) -> bool {
    directory.join(postern_ca::store::DATABASE).exists()
}

fn status(place: Place, trust_domain: Option<TrustDomain>) -> ExitCode {
    let (directory, trust_domain) = match place.resolve(trust_domain) {
        Ok(found) => found,
        Err(code) => return code,
    };
    if !has_ca(&directory) {
        return failed(format!("{}: no CA has been here yet; start postern control", directory.display()));
    }
    match Sqlite::open(&directory, &trust_domain).and_then(|store| print_status(&store, &trust_domain)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error),
    }
}

fn print_status(store: &Sqlite, trust_domain: &TrustDomain) -> Result<(), postern_ca::store::StoreError> {
    let now = SystemClock.wall();
    let counts = store.counts(now)?;
    say(format_args!("trust domain   {trust_domain}"));
    say(format_args!("bundle         version {}", store.bundle_sequence()?));
    for ca in store.authorities()? {
        let kind = match ca.kind {
            Kind::Root => "root",
            Kind::Issuing => "issuing CA",
        };
        let state = match ca.state {
            State::Prepared => "prepared",
            State::Active => "active",
            State::Retired => "retired",
        };
        say(format_args!("{kind:<14} {state}, {}, {}", ca.label, left(ca.not_after, now)));
        if ca.kind == Kind::Root {
            say(format_args!("rootSha256     {}", ca.sha256()));
        }
    }
    say(format_args!("certificates   {} valid", counts.valid));
    say(format_args!("join tokens    {} open", counts.open_tokens));
    say(format_args!("forks          {}", counts.forked));
    Ok(())
}

fn left(end: SystemTime, now: SystemTime) -> String {
    match end.duration_since(now) {
        Ok(left) if left.as_secs() >= 86_400 => format!("{} days left", left.as_secs() / 86_400),
        Ok(left) => format!("{} s left", left.as_secs()),
        Err(_) => "ended".to_owned(),
    }
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
        match (self.config, self.state_dir.zip(told)) {
            (Some(config), _) => match Config::load(&config) {
                Ok(config) => Ok((config.state_dir, config.trust_domain)),
                Err(error) => {
                    eprintln!("{error}");
                    Err(ExitCode::from(2))
                }
            },
            (None, Some(both)) => Ok(both),
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

fn failed(error: impl Display) -> ExitCode {
    eprintln!("postern ca: {error}");
    ExitCode::FAILURE
}

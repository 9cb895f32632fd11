//! `postern ca backup` and `restore`: the whole state of the CA in one sealed file.

use std::path::PathBuf;
use std::process::ExitCode;

use postern_ca::backup::{self, BackupError, Epoch};
use postern_ca::keys::{KeyError, Seal, Source};
use postern_ca::store::Kind;
use postern_control::{Config, Lock, LockError};
use postern_svid::{Clock as _, SystemClock};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::keys::Secret;
use super::{failed, has_ca};
use crate::say;

#[derive(clap::Args)]
pub(super) struct BackupArgs {
    /// The file to write; it must not exist.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    of: Of,
}

#[derive(clap::Args)]
pub(super) struct RestoreArgs {
    /// The backup.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Let every number go on above all that can have been seen since the backup; void what may have been used since.
    #[arg(long)]
    new_epoch: bool,
    /// A head of the ledger that was kept elsewhere: a backup that is older is refused.
    #[arg(long, value_name = "FILE")]
    known_head: Option<PathBuf>,
    #[command(flatten)]
    of: Of,
}

#[derive(clap::Args)]
struct Of {
    /// The control plane's configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    secret: Secret,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Lock(#[from] LockError),
}

impl Of {
    fn resolve(&self) -> Result<(Config, Source), ExitCode> {
        let config = super::load(&self.config)?;
        match self.secret.source().or_else(|| config.keys.seal.clone()) {
            Some(source) => Ok((config, source)),
            None => Err(failed(
                "a backup is sealed, and no secret is named: give --key-file, --passphrase-file, --environment or --credential, or put keys.seal into the configuration",
            )),
        }
    }
}

pub(super) fn backup(args: BackupArgs) -> ExitCode {
    let (config, source) = match args.of.resolve() {
        Ok(found) => found,
        Err(code) => return code,
    };
    let directory = &config.state_dir;
    if !has_ca(directory) {
        return failed(format!("{}: no CA has been here yet; check stateDir", directory.display()));
    }
    let taken = (|| {
        let seal = Seal::read(&source).map_err(KeyError::from)?;
        // Without a control plane nothing happens after it, as far as we can see.
        let lock = match Lock::take(directory) {
            Ok(lock) => Some(lock),
            Err(LockError::InUse(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let in_token: &[Kind] = match &config.keys.token {
            None => &[],
            Some(token) if token.issuing => &[Kind::Root, Kind::Tier, Kind::Issuing],
            Some(_) => &[Kind::Root, Kind::Tier],
        };
        let now = SystemClock.wall();
        Ok::<_, Failure>(backup::take(
            directory,
            &config.trust_domain,
            &seal,
            &args.file,
            lock.is_none(),
            in_token,
            now,
        )?)
    })();
    let manifest = match taken {
        Ok(manifest) => manifest,
        Err(error) => return failed(error),
    };
    if args.of.json {
        say(json!({
            "file": args.file.display().to_string(),
            "trustDomain": manifest.trust_domain,
            "taken": instant(manifest.taken_ms),
            "running": manifest.is_running,
            "bundleSequence": manifest.bundle_sequence,
            "issued": manifest.issued,
            "ledgerRecords": manifest.ledger_size,
        }));
    } else {
        say(format_args!(
            "{}: the CA of {}, {} certificates issued so far, {} records of the ledger, sealed by {source}",
            args.file.display(),
            manifest.trust_domain,
            manifest.issued,
            manifest.ledger_size
        ));
    }
    ExitCode::SUCCESS
}

pub(super) fn restore(args: RestoreArgs) -> ExitCode {
    let (config, source) = match args.of.resolve() {
        Ok(found) => found,
        Err(code) => return code,
    };
    let directory = &config.state_dir;
    let epoch = if args.new_epoch { Epoch::New(SystemClock.wall()) } else { Epoch::Same };
    let done = (|| {
        let seal = Seal::read(&source).map_err(KeyError::from)?;
        postern_ca::keys::private_dir(directory)?;
        let _lock = Lock::take(directory)?;
        let head = args.known_head.as_deref();
        Ok::<_, Failure>(backup::restore(directory, &config.trust_domain, &seal, &args.file, epoch, head)?)
    })();
    let restored = match done {
        Ok(restored) => restored,
        Err(error) => return failed(error),
    };
    let taken = instant(restored.manifest.taken_ms);
    let old_ledger = restored.old_ledger.as_ref().map(|path| path.display().to_string());
    if args.of.json {
        say(json!({
            "stateDir": directory.display().to_string(),
            "trustDomain": restored.manifest.trust_domain,
            "taken": taken,
            "newEpoch": args.new_epoch,
            "bundleSequence": restored.bundle_sequence,
            "voidedTokens": restored.voided_tokens,
            "oldLedger": old_ledger,
        }));
        return ExitCode::SUCCESS;
    }
    say(format_args!("{}: the CA of {} as of {taken}", directory.display(), restored.manifest.trust_domain));
    if args.new_epoch {
        say(format_args!("bundle         version {}", restored.bundle_sequence));
        say(format_args!("join tokens    {} voided", restored.voided_tokens));
        if let Some(old) = old_ledger {
            say(format_args!("ledger         another one begins; the old one is in {old}"));
        }
        say(
            "Lost is what happened since: sidecars that joined or renewed after it need a new token, and revocations must be set again (docs/backup.md).",
        );
    }
    ExitCode::SUCCESS
}

fn instant(ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
    at.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

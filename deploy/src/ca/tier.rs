//! `postern ca tier`: what an offline root has to sign, and what it has signed. Works on the state directory, whether a control
//! plane runs on it or not; one that does takes up what it finds within a second.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Subcommand;
use postern_ca::authority::{ImportedTier, TierRequest, import_tier, request_tier};
use postern_ca::csr;
use postern_ca::keys::KeyStore;
use postern_ca::offline::pem;
use postern_ca::store::{Sqlite, Store as _};
use postern_control::Config;
use postern_svid::{Clock as _, SystemClock};
use serde_json::json;

use super::{failed, has_ca, load, write_new};
use crate::say;

/// The tier between an offline root and the issuing CAs.
#[derive(Subcommand)]
pub(super) enum Verb {
    /// Write the request that the offline root has to sign; its key is made here and stays here. Again gives the same request.
    Csr {
        /// The file to write; it must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Another request beside the one that waits, for a spare.
        #[arg(long)]
        another: bool,
        #[command(flatten)]
        of: Of,
    },
    /// Take the certificate that the root has signed. It is proven first, and signs from then on.
    Import {
        /// The certificate, PEM; behind it those of CAs between it and the root, if there are any.
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Keep it: it takes over when the tier that signs is tainted, or has lived two thirds of its life and ends first.
        #[arg(long)]
        spare: bool,
        #[command(flatten)]
        of: Of,
    },
}

#[derive(clap::Args)]
pub(super) struct Of {
    /// The control plane's configuration file.
    #[arg(long, value_name = "FILE")]
    pub(super) config: PathBuf,
    /// One JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

/// The store and keys of a CA that is there.
pub(super) struct Opened {
    pub(super) config: Config,
    pub(super) store: Sqlite,
    pub(super) keys: std::sync::Arc<dyn KeyStore>,
}

impl Of {
    pub(super) fn open(&self) -> Result<Opened, ExitCode> {
        let config = load(&self.config)?;
        let directory = &config.state_dir;
        if !has_ca(directory) {
            return Err(failed(format_args!(
                "{}: no CA has been here yet; postern ca init --config FILE --root-cert root.pem begins one under an offline root",
                directory.display()
            )));
        }
        let keys = postern_ca::keys::private_dir_there(directory)
            .and_then(|()| config.keys.open(directory, &config.trust_domain))
            .map_err(failed)?;
        let store = Sqlite::open(directory, &config.trust_domain).map_err(failed)?;
        if store.replica().map_err(failed)?.is_some() {
            return Err(failed(
                "this control plane is one of several replicas, which cannot share an offline root yet (docs/offline-root.md)",
            ));
        }
        Ok(Opened { config, store, keys })
    }
}

pub(super) fn run(verb: Verb) -> ExitCode {
    let done = match verb {
        Verb::Csr { out, another, of } => csr_to(&out, another, &of),
        Verb::Import { file, spare, of } => import(&file, spare, &of),
    };
    done.map_or_else(|code| code, |()| ExitCode::SUCCESS)
}

fn csr_to(out: &Path, another: bool, of: &Of) -> Result<(), ExitCode> {
    let Opened { config, store, keys } = of.open()?;
    // Before a key is made for it.
    if std::fs::symlink_metadata(out).is_ok() {
        return Err(failed(format_args!("{}: exists already and is not overwritten", out.display())));
    }
    let now = SystemClock.wall();
    let made = request_tier(&config.trust_domain, &store, keys.as_ref(), another, now);
    let TierRequest { label, csr, is_new } = made.map_err(failed)?;
    write_new(out, pem("CERTIFICATE REQUEST", &csr).as_bytes())?;
    let sha256 = postern_ca::hex(&csr::fingerprint(&csr));
    if of.json {
        say(json!({
            "file": out.display().to_string(),
            "tier": label,
            "sha256": sha256,
            "created": is_new,
            "trustDomain": config.trust_domain.as_str(),
        }));
        return Ok(());
    }
    let state = if is_new { "a request for" } else { "the request that waits, for" };
    say(format_args!("{}: {state} {label} of {}", out.display(), config.trust_domain));
    say(format_args!("SHA-256        {sha256}"));
    say("Write the SHA-256 down, and bring the file to the offline root:");
    say(format_args!(
        "  postern ca root sign {} --root DIRECTORY --out tier.pem --expect {sha256}",
        out.display()
    ));
    say("Then, here:");
    say(format_args!("  postern ca tier import tier.pem --config {}", of.config.display()));
    Ok(())
}

fn import(file: &Path, spare: bool, of: &Of) -> Result<(), ExitCode> {
    let Opened { config, store, keys } = of.open()?;
    let now = SystemClock.wall();
    let taken = import_tier(&config.trust_domain, &store, keys.as_ref(), file, spare, now);
    let ImportedTier { label, sha256, root, not_after, is_active } = taken.map_err(failed)?;
    let left = not_after.duration_since(now).unwrap_or_default();
    if of.json {
        say(json!({
            "tier": label,
            "sha256": sha256,
            "root": root,
            "active": is_active,
            "secondsLeft": left.as_secs(),
        }));
        return Ok(());
    }
    say(format_args!("{label}, signed by {root}, SHA-256 {sha256}, {} left", super::revoke::span(left)));
    let is_new =
        store.authorities().map_err(failed)?.iter().all(|row| row.kind != postern_ca::store::Kind::Issuing);
    say(match (is_active, spare) {
        (true, _) if is_new => "It signs from now on: start postern control.",
        (true, _) => {
            "It signs from now on: a running control plane makes an issuing CA under it within a second."
        }
        (false, true) => {
            "It is kept: it takes over when the tier that signs is tainted, or has lived two thirds of its life and ends first."
        }
        (false, false) => "It signs when its root is activated: postern ca root activate.",
    });
    Ok(())
}

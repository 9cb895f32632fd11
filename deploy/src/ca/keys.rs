//! `postern ca keys`: seals the keys of a state directory, takes the seal off again, or changes the secret. While no control
//! plane runs there.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use postern_ca::keys::{self, KeyError, Seal, Source};
use postern_control::{Lock, LockError};
use serde_json::json;

use super::{Place, failed};
use crate::say;

#[derive(Subcommand)]
pub(super) enum Verb {
    /// Seal every key that is not sealed yet, with the secret that keys.seal names.
    Seal {
        #[command(flatten)]
        of: Of,
    },
    /// Take the seal off every key.
    Unseal {
        #[command(flatten)]
        of: Of,
    },
    /// Seal every key with another secret.
    Reseal {
        #[command(flatten)]
        of: Of,
        #[command(flatten)]
        to: To,
    },
}

#[derive(clap::Args)]
pub(super) struct Of {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    secret: Secret,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// The secret, if it is not the one that the configuration names.
#[derive(clap::Args)]
#[group(multiple = false)]
pub(super) struct Secret {
    /// A file with the sealing key, 64 hexadecimal digits; without any of these four the configuration's keys.seal.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// A file with the passphrase.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// An environment variable with the sealing key.
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// A systemd credential with the sealing key.
    #[arg(long, value_name = "NAME")]
    credential: Option<String>,
}

/// The secret to come.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct To {
    /// A file with the new sealing key.
    #[arg(long, value_name = "FILE")]
    to_key_file: Option<PathBuf>,
    /// A file with the new passphrase.
    #[arg(long, value_name = "FILE")]
    to_passphrase_file: Option<PathBuf>,
    /// An environment variable with the new sealing key.
    #[arg(long, value_name = "NAME")]
    to_environment: Option<String>,
    /// A systemd credential with the new sealing key.
    #[arg(long, value_name = "NAME")]
    to_credential: Option<String>,
}

pub(super) fn run(verb: Verb) -> ExitCode {
    match verb {
        Verb::Seal { of } => change(of, "sealed", keys::seal),
        Verb::Unseal { of } => change(of, "unsealed", keys::unseal),
        Verb::Reseal { of, to } => {
            let Some(to) = to.source() else { return ExitCode::from(2) };
            change(of, "resealed", |directory, seal| keys::reseal(directory, seal, &Seal::read(&to)?))
        }
    }
}

fn change(
    of: Of,
    what: &'static str,
    work: impl FnOnce(&std::path::Path, &Seal) -> Result<Vec<String>, KeyError>,
) -> ExitCode {
    let (directory, source) = match of.resolve() {
        Ok(found) => found,
        Err(code) => return code,
    };
    let Some(source) = source else {
        return failed(
            "no secret is named: put `keys: {seal: {keyFile: PATH}}` into the configuration, or give --key-file, --passphrase-file, --environment or --credential",
        );
    };
    if !super::has_ca(&directory) {
        return failed(format!("{}: no CA has been here yet; check the directory", directory.display()));
    }
    let done = (|| {
        keys::private_dir(&directory)?;
        let lock = Lock::take(&directory)?;
        let names = work(&directory, &Seal::read(&source).map_err(KeyError::from)?)?;
        drop(lock);
        Ok::<_, LockError>(names)
    })();
    match done {
        Ok(names) if of.json => {
            say(json!({ "stateDir": directory.display().to_string(), what: names }));
            ExitCode::SUCCESS
        }
        Ok(names) => {
            for name in &names {
                say(format_args!("{name}: {what}"));
            }
            say(format_args!("{} keys {what}{}", names.len(), advice(what)));
            ExitCode::SUCCESS
        }
        Err(error) => failed(error),
    }
}

/// The configuration is the operator's, and the next start reads it.
fn advice(what: &str) -> &'static str {
    match what {
        "sealed" => "; the configuration must name this secret as keys.seal",
        "unsealed" => "; take keys.seal out of the configuration",
        _ => "; let keys.seal in the configuration name the new secret",
    }
}

impl Of {
    /// The state directory, and the secret that is named.
    fn resolve(&self) -> Result<(PathBuf, Option<Source>), ExitCode> {
        let told = self.secret.source();
        let config = match (&self.place.config, &self.place.state_dir) {
            (Some(path), _) => super::load(path)?,
            (None, Some(directory)) => return Ok((directory.clone(), told)),
            // The command line's grammar demands one of them.
            (None, None) => return Err(ExitCode::from(2)),
        };
        Ok((config.state_dir, told.or(config.keys.seal)))
    }
}

impl Secret {
    pub(super) fn source(&self) -> Option<Source> {
        let Self { key_file, passphrase_file, environment, credential } = self;
        source(key_file, passphrase_file, environment, credential)
    }
}

impl To {
    fn source(&self) -> Option<Source> {
        let Self { to_key_file, to_passphrase_file, to_environment, to_credential } = self;
        source(to_key_file, to_passphrase_file, to_environment, to_credential)
    }
}

fn source(
    key_file: &Option<PathBuf>,
    passphrase_file: &Option<PathBuf>,
    environment: &Option<String>,
    credential: &Option<String>,
) -> Option<Source> {
    let key_file = key_file.clone().map(Source::KeyFile);
    let passphrase_file = passphrase_file.clone().map(Source::PassphraseFile);
    let environment = environment.clone().map(Source::Environment);
    key_file.or(passphrase_file).or(environment).or_else(|| credential.clone().map(Source::Credential))
}

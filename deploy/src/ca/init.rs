//! `postern ca init`: the CA, made without a control plane that serves it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use postern_control::{Config, StartError};
use postern_svid::SystemClock;
use serde_json::json;

use super::failed;
use crate::say;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The control plane's configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The certificate of an existing root, PEM; without it a new root is made.
    #[arg(long, value_name = "FILE", requires = "root_key")]
    root_cert: Option<PathBuf>,
    /// Its key, PEM: PKCS#8 or SEC1, P-384 or P-256, in a file of mode 0600.
    #[arg(long, value_name = "FILE", requires = "root_cert")]
    root_key: Option<PathBuf>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> ExitCode {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let root = args.root_cert.as_deref().zip(args.root_key.as_deref());
    let made = match postern_control::init(&config, root, Arc::new(SystemClock)) {
        Ok(made) => made,
        Err(StartError::Config(error)) => {
            eprintln!("postern ca: {error}");
            return ExitCode::from(2);
        }
        Err(error) => return failed(error),
    };
    let root_sha256: Vec<String> = made.roots.iter().map(|root| root.sha256()).collect();
    if args.json {
        say(json!({
            "created": made.is_new,
            "trustDomain": config.trust_domain.as_str(),
            "stateDir": config.state_dir.display().to_string(),
            "rootSha256": root_sha256,
            "bundle": made.bundle.display().to_string(),
        }));
        return ExitCode::SUCCESS;
    }
    let state = if made.is_new { "made" } else { "was there already, and stays" };
    say(format_args!("the CA of {} in {}: {state}", config.trust_domain, config.state_dir.display()));
    for sha256 in root_sha256 {
        say(format_args!("rootSha256     {sha256}"));
    }
    say(format_args!("trust bundle   {}", made.bundle.display()));
    if made.is_new
        && let Some(key) = &args.root_key
    {
        say(format_args!(
            "The root's key is in the state directory now. What {} holds is no longer needed here: keep it offline, or destroy it.",
            key.display()
        ));
    }
    ExitCode::SUCCESS
}

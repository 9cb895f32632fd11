//! `postern ca init`: the CA, made without a control plane that serves it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use postern_control::StartError;
use postern_svid::{SystemClock, TrustDomain};
use serde_json::json;

use super::keys::Secret;
use super::{failed, misused};
use crate::say;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The control plane's configuration file.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "offline_root",
        conflicts_with = "offline_root"
    )]
    config: Option<PathBuf>,
    /// The certificate of an existing root, PEM; without it a new root is made. Without --root-key the root is offline, and signs
    /// tiers by file.
    #[arg(long, value_name = "FILE", conflicts_with = "offline_root")]
    root_cert: Option<PathBuf>,
    /// Its key, PEM: PKCS#8 or SEC1, P-384 or P-256, in a file of mode 0600.
    #[arg(long, value_name = "FILE", requires = "root_cert")]
    root_key: Option<PathBuf>,
    /// Make a root on a machine that no network reaches, in a directory of its own, its key sealed with a passphrase.
    #[arg(long, requires_all = ["trust_domain", "out"])]
    offline_root: bool,
    /// Its trust domain.
    #[arg(long, value_name = "NAME", requires = "offline_root")]
    trust_domain: Option<TrustDomain>,
    /// Its directory; it must not exist.
    #[arg(long, value_name = "DIR", requires = "offline_root")]
    out: Option<PathBuf>,
    #[command(flatten)]
    secret: Secret,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args) -> ExitCode {
    if let (Some(td), Some(out)) = (&args.trust_domain, &args.out) {
        return super::offline::init(td, out, &args.secret, args.json);
    }
    if args.secret.source().is_some() {
        return misused(
            "a secret is named for --offline-root alone; the configuration names the other as keys.seal",
        );
    }
    // The command line's grammar demands one of them.
    let Some(path) = &args.config else { return ExitCode::from(2) };
    let config = match super::load(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let root = args.root_cert.as_deref().map(|certificate| (certificate, args.root_key.as_deref()));
    let made = match postern_control::init(&config, root, Arc::new(SystemClock)) {
        Ok(made) => made,
        Err(StartError::Config(error)) => return misused(error),
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
            "offlineRoot": made.is_offline,
            "needed": made.alarms.iter().map(|alarm| alarm.code).collect::<Vec<_>>(),
        }));
        return ExitCode::SUCCESS;
    }
    let state = if made.is_new { "made" } else { "was there already, and stays" };
    say(format_args!("the CA of {} in {}: {state}", config.trust_domain, config.state_dir.display()));
    for sha256 in root_sha256 {
        say(format_args!("rootSha256     {sha256}"));
    }
    say(format_args!("trust bundle   {}", made.bundle.display()));
    for alarm in &made.alarms {
        say(format_args!("NEEDED         {}", alarm.text));
    }
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

//! `postern ca init --offline-root` and `postern ca root sign`: what is done where the root is, on a machine that no network reaches.
//! No configuration and no state directory are needed there.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use postern_ca::csr;
use postern_ca::keys::{Seal, Source};
use postern_ca::offline::{CERTIFICATE, OfflineRoot, pem};
use postern_svid::{Clock as _, SystemClock, TrustDomain};
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::keys::Secret;
use super::{failed, write_new};
use crate::say;

/// The shortest beginning of a SHA-256 that is compared: half of it, which nobody finds another request for.
const LEAST: usize = 32;

/// Sign a tier's request.
#[derive(clap::Args)]
pub(super) struct SignArgs {
    /// The request, from postern ca tier csr.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The directory that postern ca init --offline-root has made.
    #[arg(long, value_name = "DIR")]
    root: PathBuf,
    /// The file to write; it must not exist.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The SHA-256 that postern ca tier csr has shown, or its first 32 digits. Without it, nothing is signed, and what would be is
    /// shown.
    #[arg(long, value_name = "SHA256")]
    expect: Option<String>,
    /// How long it lives.
    #[arg(long, value_name = "N", default_value_t = 365)]
    days: u32,
    #[command(flatten)]
    secret: Secret,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// Makes the root.
pub(super) fn init(td: &TrustDomain, out: &Path, secret: &Secret, json: bool) -> ExitCode {
    let now = SystemClock.wall();
    let made = new_secret(secret).and_then(|seal| OfflineRoot::create(td, out, seal, now).map_err(failed));
    let certificate = match made {
        Ok(certificate) => certificate,
        Err(code) => return code,
    };
    let sha256 = postern_ca::hex(&csr::fingerprint(&certificate));
    let file = out.join(CERTIFICATE);
    if json {
        say(json!({
            "directory": out.display().to_string(),
            "certificate": file.display().to_string(),
            "rootSha256": sha256,
            "trustDomain": td.as_str(),
        }));
        return ExitCode::SUCCESS;
    }
    say(format_args!("{}: the root of {td}; README.txt there says what to do with it", out.display()));
    say(format_args!("rootSha256     {sha256}"));
    say(format_args!("this clock     {}", instant(now)));
    say(format_args!("Bring only {} to the control plane, and there:", file.display()));
    say("  postern ca init --config control.yaml --root-cert root.pem");
    ExitCode::SUCCESS
}

pub(super) fn sign(args: SignArgs) -> ExitCode {
    try_sign(&args).map_or_else(|code| code, |()| ExitCode::SUCCESS)
}

fn try_sign(args: &SignArgs) -> Result<(), ExitCode> {
    let SignArgs { file, root: directory, out, expect, days, secret, json } = args;
    if std::fs::symlink_metadata(out).is_ok() {
        return Err(failed(format_args!("{}: exists already and is not overwritten", out.display())));
    }
    let expect = expect.as_ref().map(|text| text.trim().to_ascii_lowercase());
    if expect.as_ref().is_some_and(|text| text.len() < LEAST || !text.bytes().all(|b| b.is_ascii_hexdigit()))
    {
        return Err(super::misused(format_args!(
            "--expect: a SHA-256, or at least its first {LEAST} hexadecimal digits"
        )));
    }
    let now = SystemClock.wall();
    let seal = Seal::read(&source(secret)).map_err(failed)?;
    let mut root = OfflineRoot::open(directory, seal, now).map_err(failed)?;
    let asked = root.read(file).map_err(failed)?;
    if !json {
        say(format_args!("request        {} of {}", asked.label, root.trust_domain()));
        say(format_args!("SHA-256        {}", asked.sha256));
        say(format_args!("signed so far  {}", root.signed()));
        say(format_args!("this clock     {}", instant(now)));
        say(format_args!(
            "life           {days} days, path length 1: it signs issuing CAs, which sign workloads"
        ));
    }
    match expect {
        None => {
            return Err(failed(format_args!(
                "nothing was signed. Is that the SHA-256 that postern ca tier csr has shown on the control plane? Then run this again with --expect {}",
                asked.sha256
            )));
        }
        Some(expect) if !asked.sha256.starts_with(&expect) => {
            return Err(failed(format_args!(
                "nothing was signed: {} has the SHA-256 {}, not {expect}. It was exchanged on its way, or is another request",
                file.display(),
                asked.sha256
            )));
        }
        Some(_) => {}
    }
    let signed = root.sign(&asked, *days, now).map_err(failed)?;
    write_new(out, pem("CERTIFICATE", &signed.certificate).as_bytes())?;
    if *json {
        say(json!({
            "file": out.display().to_string(),
            "tier": asked.label,
            "request": asked.sha256,
            "sha256": signed.sha256,
            "notAfter": instant(signed.not_after),
            "again": signed.is_again,
        }));
        return Ok(());
    }
    let again = if signed.is_again { ", the certificate of before once more" } else { "" };
    say(format_args!("{}: signed until {}{again}", out.display(), instant(signed.not_after)));
    say(format_args!("SHA-256        {}", signed.sha256));
    say("Bring it to the control plane: postern ca tier import FILE --config control.yaml");
    Ok(())
}

/// Without a place that is named it is asked for.
fn source(secret: &Secret) -> Source {
    secret.source().unwrap_or(Source::Terminal)
}

/// A secret for something new: one that is typed is typed twice.
fn new_secret(secret: &Secret) -> Result<Seal, ExitCode> {
    let source = source(secret);
    let seal = Seal::read(&source).map_err(failed)?;
    if source == Source::Terminal {
        eprintln!("Once more:");
        if !Seal::read(&source).map_err(failed)?.is_same(&seal) {
            return Err(failed("the two passphrases differ; nothing was made"));
        }
    }
    Ok(seal)
}

fn instant(at: SystemTime) -> String {
    OffsetDateTime::from(at)
        .replace_nanosecond(0)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default()
}

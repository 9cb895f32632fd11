//! `postern ca taint`, `deny` and `allow-again`: what the trust domain no longer stands by. Written to the store; a running
//! control plane takes it up within a second.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use clap::Subcommand;
use postern_ca::authority::parent;
use postern_ca::issue::MAX_TTL;
use postern_ca::store::{Authority, Kind, Reason, Revocation, Sqlite, State, Store, StoreError};
use postern_policy::yaml::Span;
use postern_svid::{Clock, Revoked, SpiffeId, SystemClock};
use serde_json::json;

use super::mesh_admin::MeshAdmin;
use super::{Of, failed, misused};
use crate::say;

/// Longer than any emergency takes: its two steps, a minute each.
const LONGEST: Duration = Duration::from_secs(200);
/// A bundle takes a second to everybody who is connected.
const ACKNOWLEDGED: Duration = Duration::from_secs(15);
/// Ten years: nobody remembers the reason by then.
const LONGEST_DENIAL: Duration = Duration::from_secs(3_650 * 86_400);

/// Whom an entry of the deny list names.
#[derive(Subcommand)]
pub(super) enum Whom {
    /// Every certificate of a SPIFFE id, and its join tokens.
    Id {
        /// The id.
        id: SpiffeId,
        #[command(flatten)]
        how: How,
    },
    /// One certificate.
    Serial {
        /// Its serial number, hexadecimal.
        #[arg(value_name = "HEX", value_parser = serial)]
        serial: Hex,
        #[command(flatten)]
        how: How,
    },
    /// A public key, whatever certificate it has.
    Key {
        /// SHA-256 over its SubjectPublicKeyInfo, hexadecimal, as the ledger has it.
        #[arg(value_name = "SHA256", value_parser = sha256)]
        key: Hex,
        #[command(flatten)]
        how: How,
    },
}

/// Bytes that were given in hexadecimal.
#[derive(Clone)]
pub(super) struct Hex(Vec<u8>);

#[derive(clap::Args)]
pub(super) struct How {
    /// Why; it stands in the ledger for good.
    #[arg(long, value_name = "TEXT")]
    reason: Reason,
    /// With deny, how long. Needed for an id, which can get new certificates; else until nothing that is named can be valid.
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    time: Option<Duration>,
    /// Answer with a JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    of: Of,
}

/// Taint a CA.
#[derive(clap::Args)]
pub(super) struct TaintArgs {
    /// Its key id (hexadecimal) or label, as `postern ca status` shows it.
    #[arg(value_name = "KEY-ID|LABEL")]
    ca: String,
    /// Why; it stands in the ledger for good.
    #[arg(long, value_name = "TEXT")]
    reason: Reason,
    /// Do not wait for the steps that follow.
    #[arg(long)]
    no_wait: bool,
    /// Answer with a JSON document, without waiting.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: super::Admin,
    #[command(flatten)]
    of: Of,
}

impl Whom {
    fn parts(self) -> (Revoked, How) {
        match self {
            Self::Id { id, how } => (Revoked::Id(id), how),
            Self::Serial { serial, how } => (Revoked::Serial(serial.0), how),
            // The parser has counted them.
            Self::Key { key, how } => (Revoked::Key(key.0.try_into().unwrap_or_default()), how),
        }
    }
}

pub(super) fn deny(whom: Whom) -> ExitCode {
    let (entry, How { reason, time, json, of }) = whom.parts();
    if matches!(entry, Revoked::Id(_)) && time.is_none() {
        return misused("say how long, --for 7d: an id can get new certificates, so nothing else ends it");
    }
    let (store, trust_domain) = match of.store_and_domain() {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return failed(error),
        Err(code) => return code,
    };
    let now = SystemClock.wall();
    let denied = ends(&store, &entry, time, now).and_then(|ends| {
        let entry = Revocation { entry: entry.clone(), reason, at: now, ends: Some(ends) };
        entry.check(&trust_domain)?;
        Ok((store.revoke(entry)?, ends))
    });
    match denied {
        Ok((sequence, ends)) => {
            let left = ends.duration_since(now).unwrap_or_default();
            if json {
                let seconds = left.as_secs();
                say(
                    json!({"denied": entry.to_string(), "bundleSequence": sequence, "endsInSeconds": seconds}),
                );
            } else {
                say(format_args!(
                    "denied: {entry}, for {}; in the trust bundle of version {sequence}, which a running control plane sends out within a second",
                    span(left)
                ));
            }
            ExitCode::SUCCESS
        }
        Err(error) => failed(error),
    }
}

/// When nothing that the entry names can be valid any more, unless a time was said.
fn ends(
    store: &Sqlite,
    entry: &Revoked,
    time: Option<Duration>,
    now: SystemTime,
) -> Result<SystemTime, StoreError> {
    let known = match (time, entry) {
        (Some(time), _) => return Ok(now + time),
        (None, Revoked::Serial(serial)) => store.certificate(serial)?.map(|(issued, _)| issued.not_after),
        // Another certificate for it may be under way.
        (None, _) => None,
    };
    // A minute: certificates count whole seconds, and clocks differ.
    Ok(known.unwrap_or(now + MAX_TTL).max(now) + Duration::from_secs(60))
}

pub(super) fn allow_again(whom: Whom) -> ExitCode {
    let (entry, How { reason, time, json, of }) = whom.parts();
    if time.is_some() {
        return misused("--for belongs to postern ca deny; what is allowed again stays so");
    }
    let store = match of.store() {
        Ok(Ok(store)) => store,
        Ok(Err(error)) => return failed(error),
        Err(code) => return code,
    };
    match store.allow_again(entry.clone(), reason, SystemClock.wall()) {
        Ok(Some(sequence)) => {
            if json {
                say(json!({"allowed": entry.to_string(), "bundleSequence": sequence}));
            } else {
                say(format_args!("allowed again: {entry}; in the trust bundle of version {sequence}"));
            }
            ExitCode::SUCCESS
        }
        Ok(None) => failed(format_args!("{entry} is not on the deny list; postern ca status shows what is")),
        Err(error) => failed(error),
    }
}

pub(super) fn taint(args: TaintArgs) -> ExitCode {
    let TaintArgs { ca, reason, no_wait, json, admin, of } = args;
    let (directory, trust_domain, address) = match of.place.resolve_all(of.trust_domain, admin.admin) {
        Ok(found) => found,
        Err(code) => return code,
    };
    if !super::has_ca(&directory) {
        return failed(format_args!("{}: no CA has been here yet", directory.display()));
    }
    let store = match Sqlite::open(&directory, &trust_domain) {
        Ok(store) => store,
        Err(error) => return failed(error),
    };
    let began = Instant::now();
    let tainted = find(&store, &ca).and_then(|row| {
        let after = store.journal(u64::MAX)?.last().map_or(0, |entry| entry.number);
        let is_new = store.taint(row.label.clone(), reason, SystemClock.wall())?;
        Ok((row, after, is_new))
    });
    let (row, after, is_new) = match tainted {
        Ok(found) => found,
        Err(error) => return failed(error),
    };
    let key_id = postern_ca::hex(&row.key_id);
    if json {
        say(json!({"tainted": row.label, "keyId": key_id, "new": is_new}));
        return ExitCode::SUCCESS;
    }
    let what = match row.kind {
        Kind::Root => "root",
        Kind::Tier => "tier",
        Kind::Issuing => "issuing CA",
    };
    say(format_args!("tainted: the {what} {}, key id {key_id}", row.label));
    if row.kind == Kind::Issuing && row.state == State::Active {
        say(
            "a new issuing CA signs from now on, every sidecar renews, then all that the old one has signed is refused",
        );
    }
    if row.kind == Kind::Root && row.state == State::Retired {
        say("it is out of the trust bundle already: nobody believes what comes from it");
        return ExitCode::SUCCESS;
    }
    if row.kind == Kind::Tier && row.state == State::Active {
        match has_spare(&store, &row) {
            Ok(true) => say(
                "its spare signs from now on, every sidecar renews, then all below the old one is refused. Was the spare's key in the same place? Then taint it too, and bring another tier",
            ),
            Ok(false) => {
                say(
                    "no spare is here, so it goes on signing, and nothing is refused, until another tier is there:",
                );
                say(
                    "  postern ca tier csr, postern ca root sign, postern ca tier import (docs/offline-root.md)",
                );
                return ExitCode::SUCCESS;
            }
            Err(error) => return failed(error),
        }
    }
    if row.kind == Kind::Root && row.is_offline {
        say("another root has to be brought, and a tier under it:");
        say(
            "  postern ca root import, postern ca tier csr, postern ca root sign, postern ca tier import (docs/offline-root.md)",
        );
        return ExitCode::SUCCESS;
    }
    if no_wait {
        return ExitCode::SUCCESS;
    }
    match watch(&store, MeshAdmin::at(address), &row, after, began) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => failed(format_args!(
            "not finished after {} s; is postern control running? postern ca status shows what it waits for",
            LONGEST.as_secs()
        )),
        Err(error) => failed(error),
    }
}

/// Whether another tier of the same root is there to take over.
fn has_spare(store: &Sqlite, tainted: &Authority) -> Result<bool, StoreError> {
    let now = SystemClock.wall();
    let rows = store.authorities()?;
    Ok(rows.iter().any(|row| {
        row.kind == Kind::Tier
            && row.state == State::Prepared
            && row.tainted.is_none()
            && row.not_after > now
            && parent(row) == parent(tainted)
    }))
}

/// Tells of each step as the control plane takes it. Whether the last one was.
fn watch(
    store: &Sqlite,
    admin: MeshAdmin,
    row: &Authority,
    mut after: u64,
    began: Instant,
) -> Result<bool, StoreError> {
    let entry = Revoked::Authority(row.key_id.clone());
    while began.elapsed() < LONGEST {
        for step in store.journal(after)? {
            after = step.number;
            let seconds = began.elapsed().as_secs_f64();
            let label = if step.label.is_empty() { "every sidecar" } else { &step.label };
            say(format_args!("{seconds:6.1} s  {label}: {} ({})", step.state, step.reason));
        }
        let trust = store.trust()?;
        if trust.revocations.iter().any(|one| one.entry == entry) {
            let said = acknowledged(admin, trust.sequence);
            say(format_args!("{:6.1} s  {said}", began.elapsed().as_secs_f64()));
            return Ok(true);
        }
        #[expect(clippy::disallowed_methods, reason = "nothing else runs in this process")]
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(false)
}

/// Waits until every connected sidecar has the bundle in force, and says so.
fn acknowledged(admin: MeshAdmin, sequence: u64) -> String {
    let began = Instant::now();
    loop {
        let sidecars = match admin.page("/v1/workloads") {
            Ok(page) => page["workloads"].as_array().cloned().unwrap_or_default(),
            Err(why) => {
                return format!(
                    "out in the trust bundle of version {sequence}; who has it is unknown: {why}"
                );
            }
        };
        let is_behind = |one: &&serde_json::Value| {
            one["connected"] == true && one["bundleSequence"].as_u64().unwrap_or(0) < sequence
        };
        let behind = sidecars.iter().filter(is_behind).count();
        let connected = sidecars.iter().filter(|one| one["connected"] == true).count();
        if behind == 0 {
            return format!(
                "all {connected} sidecars refuse it: they have the trust bundle of version {sequence}"
            );
        }
        if began.elapsed() > ACKNOWLEDGED {
            return format!(
                "out in the trust bundle of version {sequence}; {behind} of {connected} sidecars have not acknowledged it: postern ca who"
            );
        }
        #[expect(clippy::disallowed_methods, reason = "nothing else runs in this process")]
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The CA that is meant; a beginning of its label or key id will do if it is the only one.
fn find(store: &Sqlite, named: &str) -> Result<Authority, StoreError> {
    let rows = store.authorities()?;
    let is_meant = |row: &&Authority| row.label == named || postern_ca::hex(&row.key_id) == named;
    let mut found: Vec<_> = rows.iter().filter(is_meant).collect();
    if found.is_empty() && named.len() >= 8 {
        let begins = |row: &&Authority| {
            row.label.starts_with(named) || postern_ca::hex(&row.key_id).starts_with(named)
        };
        found = rows.iter().filter(begins).collect();
    }
    let labels: BTreeSet<_> = rows.iter().map(|row| row.label.as_str()).collect();
    let known = labels.into_iter().collect::<Vec<_>>().join(", ");
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(StoreError::File(format!("{named}: no CA of this label or key id; known are {known}"))),
        _ => Err(StoreError::File(format!("{named}: several CAs; known are {known}"))),
    }
}

fn time(text: &str) -> Result<Duration, String> {
    match Span::parse(text) {
        Some(Span(time)) if !time.is_zero() && time <= LONGEST_DENIAL => Ok(time),
        _ => Err("a length of time up to 3650d, such as 30s, 1h or 7d".to_owned()),
    }
}

fn serial(text: &str) -> Result<Hex, String> {
    let bytes = unhex(text).filter(|bytes| bytes.len() <= 20 && bytes.iter().any(|byte| *byte != 0));
    let bytes = bytes.ok_or("a serial number has up to 40 hexadecimal digits and is not zero")?;
    let leading = bytes.iter().take_while(|byte| **byte == 0).count();
    Ok(Hex(bytes[leading..].to_vec()))
}

fn sha256(text: &str) -> Result<Hex, String> {
    let bytes = unhex(text).filter(|bytes| bytes.len() == 32);
    bytes.map(Hex).ok_or_else(|| "a SHA-256 has 64 hexadecimal digits".to_owned())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) || text.len() > 128 {
        return None;
    }
    let even = if text.len().is_multiple_of(2) { text.to_owned() } else { format!("0{text}") };
    (0..even.len()).step_by(2).map(|at| u8::from_str_radix(even.get(at..at + 2)?, 16).ok()).collect()
}

/// For people: the largest unit that fits twice, to the nearest.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", (seconds + 30) / 60),
        7_200..172_800 => format!("{} h", (seconds + 1_800) / 3_600),
        _ => format!("{} days", (seconds + 43_200) / 86_400),
    }
}

/// For people: so many of these.
pub(super) fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_numbers_for_people() {
        for (seconds, text) in
            [(119, "119 s"), (1_500, "25 min"), (86_399, "24 h"), (86_460, "24 h"), (604_000, "7 days")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
        assert_eq!((count(1, "sidecar"), count(2, "sidecar")), ("1 sidecar".into(), "2 sidecars".into()));
    }
}

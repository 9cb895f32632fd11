//! `postern ca status` and `who`: the CAs as a tree, who holds which bundle, and what a rotation waits for.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::SystemTime;

use postern_ca::authority::{Alarm, parent};
use postern_ca::store::{
    Authority, Counts, Federated, FederationStore, Kind, Sqlite, State, Store, StoreError, Trust,
};
use postern_svid::{Clock, SystemClock, TrustDomain};
use serde_json::{Value, json};

use super::mesh_admin::MeshAdmin;
use super::revoke::{count, span};
use super::{Of, failed};
use crate::say;

/// Names that are printed of each list.
const NAMED: usize = 20;

/// Status.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Answer with a JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: super::Admin,
    #[command(flatten)]
    of: Of,
}

/// Who is behind.
#[derive(clap::Args)]
pub(super) struct WhoArgs {
    /// The version of the trust bundle; the newest unless said.
    #[arg(long, value_name = "N")]
    behind: Option<u64>,
    /// Answer with a JSON document.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: super::Admin,
    #[command(flatten)]
    place: super::Anywhere,
}

/// What the store says.
struct Stored {
    trust_domain: TrustDomain,
    trust: Trust,
    counts: Counts,
    federated: Vec<Federated>,
    /// Configured, and nothing of theirs is here.
    awaited: Vec<TrustDomain>,
    leaves: BTreeMap<Vec<u8>, u64>,
    now: SystemTime,
}

/// What the running control plane says.
struct Told {
    sidecars: Vec<Value>,
    steps: Vec<Value>,
    replicas: Value,
}

pub(super) fn run(args: Args) -> ExitCode {
    let Args { json, admin, of } = args;
    let configured = match of.place.config.as_deref().map(super::load).transpose() {
        Ok(config) => config.map(|config| config.federation.trust_domains).unwrap_or_default(),
        Err(code) => return code,
    };
    let (directory, trust_domain, address) = match of.place.resolve_all(of.trust_domain, admin.admin) {
        Ok(found) => found,
        Err(code) => return code,
    };
    if !super::has_ca(&directory) {
        return failed(format!("{}: no CA has been here yet; start postern control", directory.display()));
    }
    let stored = Sqlite::open(&directory, &trust_domain).and_then(|store| read(&store, trust_domain));
    let stored = match stored {
        Ok(mut stored) => {
            let is_here = |name: &TrustDomain| stored.federated.iter().any(|one| one.trust_domain == *name);
            stored.awaited =
                configured.into_iter().map(|one| one.name).filter(|name| !is_here(name)).collect();
            stored
        }
        Err(error) => return failed(error),
    };
    let told = ask(MeshAdmin::at(address));
    if json {
        print_json(&stored, &told)
    } else {
        print(&stored, &told)
    }
    ExitCode::SUCCESS
}

fn read(store: &Sqlite, trust_domain: TrustDomain) -> Result<Stored, StoreError> {
    let now = SystemClock.wall();
    let mut leaves = BTreeMap::new();
    for leaf in store.live(now)?.into_iter().filter(|leaf| leaf.is_newest && !leaf.is_own) {
        *leaves.entry(leaf.issuer).or_default() += 1;
    }
    Ok(Stored {
        trust_domain,
        trust: store.trust()?,
        counts: store.counts(now)?,
        federated: store.federated()?,
        awaited: Vec::new(),
        leaves,
        now,
    })
}

fn ask(admin: MeshAdmin) -> Result<Told, String> {
    let list = |page: &Value, name: &str| page[name].as_array().cloned().unwrap_or_default();
    let sidecars = list(&admin.page("/v1/workloads")?, "workloads");
    // A control plane of an earlier version knows of none.
    let replicas = admin.page("/v1/replicas").unwrap_or(Value::Null);
    Ok(Told { sidecars, steps: list(&admin.page("/v1/rotation")?, "steps"), replicas })
}

fn word(row: &Authority) -> &'static str {
    match (row.kind, row.state) {
        (Kind::Root, State::Retired) => "removed",
        (_, state) => state.name(),
    }
}

fn print(stored: &Stored, told: &Result<Told, String>) {
    let Stored { trust_domain, trust, counts, federated, awaited, leaves, now } = stored;
    say(format_args!("trust domain {trust_domain}, trust bundle version {}", trust.sequence));
    let of_kind = |kind| trust.authorities.iter().filter(move |row: &&Authority| row.kind == kind);
    for root in of_kind(Kind::Root) {
        say(format_args!("  root {}", line(root, *now)));
        say(format_args!("    key id {}", postern_ca::hex(&root.key_id)));
        if root.state != State::Retired {
            say(format_args!("    rootSha256 {}", root.sha256()));
        }
        print_issuing(stored, root, "    ");
        let signed = |row: &&Authority| row.state != State::Requested;
        let tiers = of_kind(Kind::Tier).filter(signed);
        for tier in tiers.filter(|row| parent(row).as_ref() == Some(&root.key_id)) {
            let is_over = !below(stored, tier).any(|row| leaves.contains_key(&row.key_id));
            if tier.state == State::Retired && is_over {
                continue;
            }
            let spare = if tier.state == State::Prepared { ", a spare or successor" } else { "" };
            say(format_args!("    tier {}{spare}", line(tier, *now)));
            say(format_args!("      key id {}", postern_ca::hex(&tier.key_id)));
            print_issuing(stored, tier, "      ");
        }
    }
    for tier in of_kind(Kind::Tier).filter(|row| row.state == State::Requested) {
        let since = span(now.duration_since(tier.since).unwrap_or_default());
        say(format_args!(
            "  tier {}  requested for {since}; postern ca tier csr writes the request again",
            tier.label
        ));
    }
    for alarm in Alarm::of(&trust.authorities, *now) {
        say(format_args!("  NEEDED {}: {}", alarm.code, alarm.text));
    }
    if let Some(text) = without_spare(&trust.authorities) {
        say(format_args!("  {text}"));
    }
    for one in &trust.revocations {
        let ends = one.ends.map(|ends| ends.duration_since(*now).unwrap_or_default());
        let ends = ends.map_or_else(|| "for ever".to_owned(), |left| format!("for {} more", span(left)));
        say(format_args!("  revoked {}, {ends}: {}", one.entry, one.reason.as_str()));
    }
    for one in federated {
        let age = span(now.duration_since(one.fetched).unwrap_or_default());
        say(format_args!(
            "  federated {}, bundle sequence {}, fetched {age} ago",
            one.trust_domain, one.sequence
        ));
    }
    for name in awaited {
        say(format_args!(
            "  federated {name}, not fetched yet: at most its bootstrap bundle is known; the control plane's log says why"
        ));
    }
    match told {
        Ok(told) => print_told(told, trust.sequence),
        Err(why) => say(format_args!("  sidecars unknown: {why}")),
    }
    say(format_args!(
        "  certificates {} valid, join tokens {} open, forks {}",
        counts.valid, counts.open_tokens, counts.forked
    ));
}

/// The issuing CAs that a root or tier has signed, but for history: what neither signs nor has a leaf.
fn below<'a>(stored: &'a Stored, parent_row: &'a Authority) -> impl Iterator<Item = &'a Authority> {
    let rows = stored.trust.authorities.iter().filter(|row| row.kind == Kind::Issuing);
    let rows = rows.filter(|row| parent(row).as_ref() == Some(&parent_row.key_id));
    rows.filter(|row| row.state != State::Retired || stored.leaves.contains_key(&row.key_id))
}

fn print_issuing(stored: &Stored, parent_row: &Authority, indent: &str) {
    for issuing in below(stored, parent_row) {
        let held = count(stored.leaves.get(&issuing.key_id).copied().unwrap_or(0), "sidecar certificate");
        let at = issuing.replica.as_ref().map(|name| format!(" at the replica {name}")).unwrap_or_default();
        say(format_args!("{indent}issuing CA {}{at}, {held}", line(issuing, stored.now)));
        say(format_args!("{indent}  key id {}", postern_ca::hex(&issuing.key_id)));
    }
}

/// No alarm, but good to know before it is one.
fn without_spare(rows: &[Authority]) -> Option<&'static str> {
    let root = rows.iter().find(|row| row.kind == Kind::Root && row.state == State::Active)?;
    let is_spare = |row: &Authority| row.kind == Kind::Tier && row.state == State::Prepared;
    let signs = rows.iter().any(|row| row.kind == Kind::Tier && row.state == State::Active);
    (root.is_offline && signs && !rows.iter().any(is_spare)).then_some(
        "no spare tier is here: should the one that signs be tainted, what it has signed is refused only after a way to the offline root (docs/offline-root.md)",
    )
}

fn line(row: &Authority, now: SystemTime) -> String {
    let left =
        row.not_after.duration_since(now).map_or_else(|_| "ended".to_owned(), |left| span(left) + " left");
    let tainted = if row.tainted.is_some() { ", TAINTED" } else { "" };
    let since = now.duration_since(row.since).unwrap_or_default();
    let offline = if row.is_offline { "offline, " } else { "" };
    format!("{}  {offline}{}{tainted} for {}, {left}", row.label, word(row), span(since))
}

fn print_told(told: &Told, newest: u64) {
    let mut by_version: BTreeMap<u64, u64> = BTreeMap::new();
    for sidecar in &told.sidecars {
        *by_version.entry(sidecar["bundleSequence"].as_u64().unwrap_or(0)).or_default() += 1;
    }
    for line in super::replicas::lines(&told.replicas) {
        say(format_args!("  {line}"));
    }
    if told.sidecars.is_empty() {
        say("  no sidecar has reported since the control plane started");
    }
    for (version, holders) in by_version.iter().rev() {
        let sidecars = count(*holders, "sidecar");
        let behind = if *version < newest { "  behind; postern ca who" } else { "" };
        say(format_args!("  bundle version {version}: {sidecars}{behind}"));
    }
    for step in &told.steps {
        let text = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
        let urgent = if step["emergency"] == true { "EMERGENCY, " } else { "" };
        say(format_args!("  next {urgent}{} {}", text("step"), text("ca")));
        if step["open"] == true {
            let who = if step["byOperator"] == true { "your word: postern ca root" } else { "nothing" };
            say(format_args!("    waits for {who}"));
        } else {
            let latest = text("latest");
            let until =
                if latest.is_empty() { String::new() } else { format!(", at the latest at {latest}") };
            say(format_args!("    waits{until} for"));
        }
        for wait in step["waits"].as_array().into_iter().flatten() {
            say(format_args!("      {}", wait.as_str().unwrap_or_default()));
        }
        let laggards = step["laggards"].as_array().into_iter().flatten();
        for one in laggards.take(NAMED) {
            let text = |name: &str| one[name].as_str().unwrap_or("").to_owned();
            let whose = format!("{} {}", text("id"), text("lineage"));
            say(format_args!("      {}: {}", whose.trim_end(), text("why")));
        }
        let more = step["behind"].as_u64().unwrap_or(0).saturating_sub(NAMED as u64);
        if more > 0 {
            say(format_args!("      and {more} more"));
        }
    }
}

fn print_json(stored: &Stored, told: &Result<Told, String>) {
    let Stored { trust_domain, trust, counts, federated, awaited, leaves, now } = stored;
    let authorities: Vec<_> = trust
        .authorities
        .iter()
        .map(|row| {
            let mut value = json!({
                "kind": row.kind.name(),
                "label": row.label,
                "keyId": postern_ca::hex(&row.key_id),
                "root": root_of(row, &trust.authorities).map(|id| postern_ca::hex(&id)),
                "signedBy": parent(row).map(|id| postern_ca::hex(&id)),
                "state": word(row),
                "tainted": row.tainted.is_some(),
                "secondsInState": now.duration_since(row.since).unwrap_or_default().as_secs(),
                "secondsLeft": row.not_after.duration_since(*now).unwrap_or_default().as_secs(),
                "replica": row.replica,
                "certificates": leaves.get(&row.key_id).copied().unwrap_or(0),
            });
            if row.kind == Kind::Root {
                value["rootSha256"] = row.sha256().into();
                value["bundleSequence"] = row.sequence.into();
                value["offline"] = row.is_offline.into();
            }
            value
        })
        .collect();
    let needed: Vec<_> = Alarm::of(&trust.authorities, *now)
        .into_iter()
        .map(|alarm| json!({"code": alarm.code, "text": alarm.text}))
        .collect();
    let revocations: Vec<_> = trust
        .revocations
        .iter()
        .map(|one| {
            let left = one.ends.map(|ends| ends.duration_since(*now).unwrap_or_default().as_secs());
            json!({"entry": one.entry.to_string(), "reason": one.reason.as_str(), "endsInSeconds": left})
        })
        .collect();
    let federated = federated.iter().map(|one| {
        let age = now.duration_since(one.fetched).unwrap_or_default().as_secs();
        json!({"trustDomain": one.trust_domain.as_str(), "bundleSequence": one.sequence, "fetchedSecondsAgo": age})
    });
    let awaited = awaited
        .iter()
        .map(|name| json!({"trustDomain": name.as_str(), "bundleSequence": null, "fetchedSecondsAgo": null}));
    let federated: Vec<_> = federated.chain(awaited).collect();
    let (sidecars, steps, replicas, why) = match told {
        Ok(told) => (Some(&told.sidecars), Some(&told.steps), Some(&told.replicas), None),
        Err(why) => (None, None, None, Some(why)),
    };
    say(json!({
        "trustDomain": trust_domain.as_str(),
        "bundleSequence": trust.sequence,
        "authorities": authorities,
        "needed": needed,
        "revocations": revocations,
        "federated": federated,
        "sidecars": sidecars,
        "steps": steps,
        "replicas": replicas,
        "unreachable": why,
        "certificates": counts.valid,
        "openTokens": counts.open_tokens,
        "forks": counts.forked,
    }));
}

/// Key identifier of the root above.
fn root_of(row: &Authority, rows: &[Authority]) -> Option<Vec<u8>> {
    let above = parent(row)?;
    let tier =
        rows.iter().find(|one| one.kind == Kind::Tier && one.key_id == above && row.kind == Kind::Issuing);
    tier.map_or(Some(above), parent)
}

/// Exit code 0: nobody is behind, 1: somebody is, or nobody could be asked.
pub(super) fn who(args: WhoArgs) -> ExitCode {
    let WhoArgs { behind, json, admin, place } = args;
    let address = match place.admin(admin.admin) {
        Ok(address) => address,
        Err(code) => return code,
    };
    let page = match MeshAdmin::at(address).page("/v1/workloads") {
        Ok(page) => page,
        Err(why) => return failed(why),
    };
    let newest = behind.or_else(|| page["bundleSequence"].as_u64()).unwrap_or(0);
    let sidecars = page["workloads"].as_array().cloned().unwrap_or_default();
    let laggards: Vec<_> =
        sidecars.iter().filter(|sidecar| sidecar["bundleSequence"].as_u64().unwrap_or(0) < newest).collect();
    if json {
        say(
            json!({"bundleSequence": newest, "behind": laggards.len(), "sidecars": sidecars.len(), "laggards": laggards}),
        );
    } else {
        say(format_args!("{} of {} sidecars are behind version {newest}", laggards.len(), sidecars.len()));
        for one in &laggards {
            let text = |name: &str| one[name].as_str().unwrap_or_default();
            let connected = if one["connected"] == true { "connected" } else { "not connected" };
            say(format_args!(
                "  {} {}: version {}, {connected}, last heard of {}, certificate until {}",
                text("id"),
                text("lineage"),
                one["bundleSequence"],
                text("reported"),
                text("notAfter")
            ));
        }
    }
    if laggards.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

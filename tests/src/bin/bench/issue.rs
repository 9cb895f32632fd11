//! How many certificates a second the control plane gives out: its own process, over mutual TLS and gRPC, each verified as a peer would
//! and durable in the ledger before it leaves; beside what OpenSSL signs on the same machine in the same run.
//!
//! The clients share the machine's processors with it. Each holds one connection with a certificate and asks for the next one over
//! and over: the answers before count as lost, which the CA allows. A renewal of a real sidecar pays for a handshake besides
//! (`bench soak`).

mod load;
pub(crate) mod place;
pub(crate) mod soak;

use std::fmt::Write as _;
use std::process::Command;

use postern_tests::{Metrics, foreign, postern, wait};
use serde_json::{Value, json};

use crate::machine;
use crate::options::Options;
use crate::stats::Spread;
use crate::table::now;
use crate::{Failure, build};
use load::Round;

/// The aims, from the project's plan.
const AIM_PER_SECOND: f64 = 2_000.0;
const AIM_P99_MS: f64 = 50.0;
/// Connections, each with a lineage of its own: one lineage is held to five a second.
const LANES: usize = 1_024;

/// Runs the bench and prints its figures.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    build::control_plane(options)?;
    let (mesh, holders) = place::prepare(LANES, LANES)?;
    let load_before = machine::load_average();
    let openssl = OpenSsl::measure()?;
    let before = metrics(&mesh.control)?;
    let rounds = load::run(&mesh, holders, options)?;
    let after = metrics(&mesh.control)?;
    check(&mesh, &rounds)?;

    let header = format!("{}, {}, load average before {load_before:.1}", now(), machine::describe());
    let text = report(options, &openssl, &rounds, &before, &after);
    print!("{header}, {} rounds of {} s\n\n{text}", options.rounds, options.length.as_secs());
    if let Some(path) = &options.json {
        let value = json!({
            "bench": "issue",
            "run": header,
            "openssl_sign_per_second": {"one": openssl.one, "all": openssl.all},
            "rounds": rounds.iter().map(Round::to_json).collect::<Vec<_>>(),
        });
        std::fs::write(path, format!("{value:#}\n"))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// ECDSA signatures with P-256 a second.
struct OpenSsl {
    /// In one process.
    one: f64,
    /// In as many as there are processors.
    all: f64,
}

impl OpenSsl {
    fn measure() -> Result<Self, Failure> {
        eprintln!("openssl speed");
        let processors = machine::processors().to_string();
        Ok(Self { one: Self::speed(&[])?, all: Self::speed(&["-multi", &processors])? })
    }

    fn speed(more: &[&str]) -> Result<f64, Failure> {
        let mut command = Command::new("openssl");
        command.args(["speed", "-seconds", "2"]).args(more).arg("ecdsap256");
        let ran = foreign::run(&mut command, wait::PATIENCE * 2);
        let line = ran.text().lines().find(|line| line.contains("ecdsa (nistp256)")).map(str::to_owned);
        let line = line.ok_or_else(|| format!("openssl speed said nothing of P-256: {}", ran.stderr))?;
        let fields: Vec<&str> = line.split_whitespace().collect();
        let rate = fields.len().checked_sub(2).and_then(|at| fields.get(at)?.parse().ok());
        rate.ok_or_else(|| format!("openssl speed: {line}"))
    }
}

fn metrics(control: &postern_tests::ControlPlane) -> Result<Metrics, Failure> {
    let (_, page) = control.page("/metrics").ok_or("the control plane does not answer")?;
    Ok(Metrics::parse(&page))
}

/// What was received is in the ledger, and the ledger is whole.
fn check(mesh: &postern_tests::Mesh, rounds: &[Round]) -> Result<(), Failure> {
    let received: usize = rounds.iter().map(|round| round.latencies.len()).sum();
    mesh.control.process().signal(nix::sys::signal::Signal::SIGTERM);
    mesh.control.process().wait(wait::PATIENCE);
    let mut command = Command::new(postern());
    command.args(["ca", "ledger", "verify", "--json", "--config"]).arg(mesh.control.config());
    let ran = foreign::run(&mut command, wait::PATIENCE * 3);
    let verified: Value =
        serde_json::from_slice(&ran.stdout).map_err(|_| format!("ledger verify: {}", ran.stderr))?;
    let size = verified["size"].as_u64().unwrap_or(0);
    // The lineages with their tokens, and the CAs', come before.
    if ran.code != 0 || (size as usize) < received + 2 * LANES {
        return Err(format!(
            "the ledger has {size} records, {received} certificates were received: {verified}"
        ));
    }
    Ok(())
}

fn report(
    options: &Options,
    openssl: &OpenSsl,
    rounds: &[Round],
    before: &Metrics,
    after: &Metrics,
) -> String {
    let spread = |figure: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(figure));
    let per_second = spread(&Round::per_second);
    let cost = spread(&Round::server_us);
    let grown = |name: &str| after.value(name) - before.value(name);
    let issued: f64 = rounds.iter().map(|round| round.latencies.len() as f64).sum();
    let syncs = grown("postern_ca_ledger_sync_seconds_count");
    let mut text = String::from("| what | figure | aim |\n|---|---|---|\n");
    let mut line = |what: &str, figure: String, aim: String| {
        let _ = writeln!(text, "| {what} | {figure} | {aim} |");
    };
    line("`openssl speed ecdsap256`, one process", format!("{:.0} signatures/s", openssl.one), "-".into());
    line("the same on all processors", format!("{:.0} signatures/s", openssl.all), "-".into());
    line(
        "certificates, verified and durable",
        format!("{}/s", per_second.show(0)),
        format!("{AIM_PER_SECOND:.0}/s"),
    );
    line(
        &format!("p50 with {} requests at a time", options.connections),
        format!("{} ms", spread(&|round| round.percentile(0.50)).show(1)),
        "-".into(),
    );
    line(
        "p99",
        format!("{} ms", spread(&|round| round.percentile(0.99)).show(1)),
        format!("{AIM_P99_MS:.0} ms"),
    );
    line("control plane's CPU for each", format!("{} us", cost.show(0)), "-".into());
    line("that in OpenSSL signatures", format!("{:.1}", cost.median * 1e-6 * openssl.one), "-".into());
    line("clients' CPU for each", format!("{} us", spread(&Round::client_us).show(0)), "-".into());
    line("records to a sync of the ledger", format!("{:.1}", issued / syncs), "-".into());
    let sync_ms = grown("postern_ca_ledger_sync_seconds_sum") * 1e3 / syncs;
    line("a sync of the ledger", format!("{sync_ms:.2} ms"), "-".into());
    text.push_str("\n| stage | mean us |\n|---|---|\n");
    for stage in postern_ca::metrics::Metrics::STAGES {
        let sum = grown(&format!("postern_ca_issue_stage_seconds_sum{{stage=\"{stage}\"}}"));
        let _ = writeln!(text, "| {stage} | {:.0} |", sum * 1e6 / issued);
    }
    text
}

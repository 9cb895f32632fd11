//! Our engine beside its neighbours, in one run and on the same rules: the reference interpreter and Cedar in one process
//! with it, and a sidecar and Envoy's RBAC filter end to end. The table of docs/benchmarks.md.
//!
//! `cargo bench -p postern-policy --bench neighbours [-- options of the mesh bench: --quick, --rounds N, --proxy FILE, …]`
//!
//! Two programs are run one after the other: `neighbour` of `policy/oracle`, which is a workspace of its own because of what
//! Cedar's dependencies switch on, and `bench policy` of `tests`, which starts the proxies. Both hold their answers against
//! the reference interpreter before they time anything. What cannot be run here is left out, and it is said why.

#![expect(clippy::unwrap_used, reason = "a measurement")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

const SIZES: [usize; 4] = [1, 100, 1_000, 10_000];

/// Nanoseconds a decision in one round.
#[derive(Clone, Copy)]
struct Round {
    engine: f64,
    reference: f64,
    cedar: f64,
}

/// Microseconds per request beyond those with one rule: the middle of the rounds, and the ends.
#[derive(Clone, Copy)]
struct Extra {
    median: f64,
    min: f64,
    max: f64,
}

#[derive(Default)]
struct Row {
    rounds: Vec<Round>,
    sidecar: Option<Extra>,
    envoy: Option<Extra>,
}

fn main() {
    // cargo adds `--bench`.
    let options: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let mut rows: BTreeMap<usize, Row> = SIZES.into_iter().map(|size| (size, Row::default())).collect();
    if let Err(why) = in_one_process(&mut rows) {
        skipped("Cedar and the columns beside it", &why);
    }
    let mut header = String::new();
    match end_to_end(&options, &mut rows) {
        Ok(said) => header = said,
        Err(why) => skipped("the sidecar and Envoy", &why),
    }
    println!("{header}\n");
    println!(
        "| rules | engine ns | rule by rule us | Cedar us | sidecar, extra us | Envoy, extra us | rule by rule / engine | Cedar / engine | Envoy - sidecar, us |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (size, row) in &rows {
        println!("| {size} | {} |", row.cells().join(" | "));
    }
}

fn skipped(what: &str, why: &str) {
    println!("!!!! LEFT OUT: {what}: {why}");
}

fn in_one_process(rows: &mut BTreeMap<usize, Row>) -> Result<(), String> {
    let manifest = repository().join("policy/oracle/Cargo.toml");
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "--bin", "neighbour", "--manifest-path"]).arg(manifest);
    command.arg("--").args(SIZES.map(|size| size.to_string()));
    let said = output(&mut command)?;
    for line in said.lines() {
        let figures: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [size, engine, reference, cedar] = figures[..] else {
            return Err(format!("`neighbour` printed `{line}`"));
        };
        if let Some(row) = rows.get_mut(&(size as usize)) {
            row.rounds.push(Round { engine, reference, cedar });
        }
    }
    Ok(())
}

fn end_to_end(options: &[String], rows: &mut BTreeMap<usize, Row>) -> Result<String, String> {
    let place = std::env::temp_dir().join(format!("postern-neighbours-{}.json", std::process::id()));
    let mut command = cargo();
    command.args(["run", "--quiet", "--release", "-p", "postern-tests", "--bin", "bench", "--", "policy"]);
    command.args(options).arg("--json").arg(&place);
    let ran = output(&mut command);
    let text = std::fs::read_to_string(&place);
    let _ = std::fs::remove_file(&place);
    println!("{}", ran?);
    let text = text.map_err(|error| format!("`bench policy` wrote no figures: {error}"))?;
    let figures: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    for size in figures["sizes"].as_array().into_iter().flatten() {
        let Some(row) = size["rules"].as_u64().and_then(|rules| rows.get_mut(&(rules as usize))) else {
            continue;
        };
        let extra = |name: &str| {
            let spread = &size[name]["extra_us"];
            let figure = |name: &str| spread[name].as_f64();
            Some(Extra { median: figure("median")?, min: figure("min")?, max: figure("max")? })
        };
        (row.sidecar, row.envoy) = (extra("postern"), extra("envoy"));
    }
    Ok(figures["run"].as_str().unwrap_or_default().to_owned())
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let none = || "-".to_owned();
        let middle = |figure: &dyn Fn(&Round) -> f64| median(self.rounds.iter().map(figure).collect());
        let show =
            |value: Option<f64>, digits: usize| value.map_or_else(none, |value| format!("{value:.digits$}"));
        let extra = |extra: Option<Extra>| {
            extra.map_or_else(none, |Extra { median, min, max }| format!("{median:.1} ({min:.1}..{max:.1})"))
        };
        let difference = self.envoy.zip(self.sidecar).map(|(envoy, sidecar)| envoy.median - sidecar.median);
        vec![
            show(middle(&|round| round.engine), 0),
            show(middle(&|round| round.reference / 1e3), 1),
            show(middle(&|round| round.cedar / 1e3), 1),
            extra(self.sidecar),
            extra(self.envoy),
            // Round by round, for a round's noise hits all three.
            show(middle(&|round| round.reference / round.engine), 0),
            show(middle(&|round| round.cedar / round.engine), 0),
            show(difference, 1),
        ]
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(repository()).stdin(Stdio::null()).stderr(Stdio::inherit());
    command
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn output(command: &mut Command) -> Result<String, String> {
    let ran = command.output().map_err(|error| format!("cargo cannot be run: {error}"))?;
    match ran.status.success() {
        true => Ok(String::from_utf8_lossy(&ran.stdout).into_owned()),
        false => Err(format!("it ended with {}, what it said stands above", ran.status)),
    }
}

//! What more rules add to a request: a sidecar, and an Envoy with the same rules as `postern policy export envoy` writes
//! them, each beside itself with one rule, in turns.
//!
//! The rules are those of `cargo bench -p postern-policy`. Of those that the caller may use a few dozen are asked for, from
//! the first to the last, by the script that wrk runs. Both must first answer them, and others that no rule allows, as the
//! reference interpreter does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use postern_policy::norm::{CanonMethod, CanonPath};
use postern_policy::{Generation, Operation, Scope, Source, SourceFile, Workload, export, load};
use postern_svid::{SpiffeId, TrustDomain};
use postern_tests::{TRUST_DOMAIN, wait};
use serde_json::{Value, json};

use crate::certificates::spiffe_id;
use crate::contenders::{self, CALLEE, CALLER, Contender, Stage, envoy, postern};
use crate::load::Asked;
use crate::mesh::{self, Cell};
use crate::options::Options;
use crate::stats::Spread;
use crate::table::now;
use crate::{Failure, install, machine};

#[path = "../../../../policy/benches/rules/mod.rs"]
mod rules;

/// The first is what the others are compared with.
const SIZES: [usize; 3] = [1, 1_000, 10_000];
/// Paths that a script asks for.
const PATHS: usize = 32;
/// The answers that a figure needs, and how many times it is tried, each three times as long.
const FEWEST_REQUESTS: f64 = 200.0;
const LENGTHS: usize = 3;
/// Processors that others kept busy in the middle round.
const STRANGERS: f64 = 0.2;

/// Everything with one number of rules.
struct Setting {
    size: usize,
    stage: Stage,
    script: PathBuf,
    contenders: Vec<(Contender, Vec<Cell>)>,
}

/// Runs the bench and prints its table.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    if machine::processors() < 2 {
        return Err("two processors are needed: one for the proxies, one for load and backend".to_owned());
    }
    let mut settings = SIZES.into_iter().map(|size| set(size, options)).collect::<Result<Vec<_>, _>>()?;
    for round in 1..=options.rounds {
        for Setting { size, stage, script, contenders } in &mut settings {
            for (contender, cells) in contenders {
                eprintln!("round {round} of {}: {}, {size} rules", options.rounds, contender.name);
                cells.push(measure(stage, contender, script, options)?);
            }
        }
    }
    let header = format!(
        "{}, {}, {} rounds of {} s, {} connections, one worker each",
        now(),
        machine::describe(),
        options.rounds,
        options.length.as_secs(),
        options.connections
    );
    print!("{header}\n\n{}", table(&settings));
    if let Some(path) = &options.json {
        let text = format!("{:#}\n", to_json(&header, &settings));
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// As long as it takes for enough answers: with many rules they are few, and of none nothing can be said.
fn measure(stage: &Stage, contender: &Contender, script: &Path, options: &Options) -> Result<Cell, Failure> {
    let mut options = options.clone();
    for _ in 0..LENGTHS {
        let cell = mesh::measure(stage, contender, Asked::Script(script), &options)?;
        if cell.load.requests >= FEWEST_REQUESTS {
            return Ok(cell);
        }
        options.length *= 3;
    }
    Err(format!(
        "{}: fewer than {FEWEST_REQUESTS} answers within {} s",
        contender.name,
        options.length.as_secs() / 3
    ))
}

fn set(size: usize, options: &Options) -> Result<Setting, Failure> {
    let files = files(size);
    let text = |file: &SourceFile| (file.name.clone(), String::from_utf8_lossy(&file.text).into_owned());
    let generation = load(&files, &scope()?, 1).map_err(|errors| errors.to_string())?;
    let stage = Stage::set(&files.iter().map(text).collect::<Vec<_>>())?;
    let allowed = allowed_paths(size);
    let script = contenders::write(&stage, "paths.lua", &script(&allowed))?;
    let mut contenders = Vec::new();
    if options.wants("postern") {
        contenders.push(postern::start(&stage, options)?);
    }
    if options.wants("envoy") {
        let exported = export::envoy(&generation);
        if let Some(loss) = exported.losses.first() {
            return Err(format!("Envoy {}: {}", loss.what, loss.rule));
        }
        // JSON is YAML.
        let filters: String = exported.http.iter().map(|filter| format!("          - {filter}\n")).collect();
        contenders.push(envoy::start(&stage, &install::envoy()?, &filters)?);
    }
    let denied = ["/", "/v1/p3", "/v1/q3/7", "/v1/q0/7/8", "/admin18/x", "/internal19/x", "/n16/a"];
    for contender in &contenders {
        for path in allowed.iter().map(String::as_str).chain(denied) {
            let expected = if is_allowed(&generation, path)? { 200 } else { 403 };
            answers(contender, path, expected)?;
        }
        if !is_allowed(&generation, &allowed[0])? || is_allowed(&generation, denied[1])? {
            return Err("the questions do not ask what they should".to_owned());
        }
    }
    Ok(Setting {
        size,
        stage,
        script,
        contenders: contenders.into_iter().map(|contender| (contender, Vec::new())).collect(),
    })
}

/// The benches' rules, in which the caller of this mesh is one of those that many rules name.
fn files(size: usize) -> Vec<SourceFile> {
    let mut files = rules::documents(size);
    for file in &mut files {
        let text = String::from_utf8_lossy(&file.text).replace(", b0]", &format!(", {CALLER}]"));
        file.text = text.into_bytes();
    }
    files
}

fn scope() -> Result<Scope, Failure> {
    Ok(Scope {
        trust_domain: TrustDomain::parse(TRUST_DOMAIN).map_err(|error| error.to_string())?,
        workload: Some(Workload {
            namespace: "shop".to_owned(),
            service_account: CALLEE.to_owned(),
            labels: BTreeMap::new(),
        }),
        ..rules::scope()
    })
}

/// Paths of rules that name the caller, from the first rule to the last.
fn allowed_paths(size: usize) -> Vec<String> {
    let named: Vec<usize> = (0..size).step_by(97).filter(|n| n % 20 < 16).collect();
    let number = |at: usize| if named.len() < PATHS { at % named.len() } else { at * named.len() / PATHS };
    let path = |at: usize| {
        let n = named[number(at)];
        // The same lengths whatever the number of rules: what differs shall be the rules.
        format!("/v1/q{n}/{at:0>width$}", width = 8 - n.to_string().len())
    };
    (0..PATHS).map(path).collect()
}

fn script(paths: &[String]) -> String {
    let list: Vec<String> = paths.iter().map(|path| format!("\"{path}\"")).collect();
    format!(
        "local paths = {{{}}}\nlocal requests = {{}}\nlocal at = 0\n\
         init = function()\n  for n, path in ipairs(paths) do requests[n] = wrk.format(\"GET\", path) end\nend\n\
         request = function()\n  at = at % #requests + 1\n  return requests[at]\nend\n",
        list.join(", ")
    )
}

fn is_allowed(generation: &Generation, path: &str) -> Result<bool, Failure> {
    let identity = SpiffeId::parse(&spiffe_id(CALLER)).map_err(|error| error.to_string())?;
    let source = Source { identity: Some(&identity), address: std::net::Ipv4Addr::LOCALHOST.into() };
    let path = CanonPath::parse(path, &generation.defaults().path).map_err(|error| error.to_string())?;
    let get = CanonMethod::get();
    let operation = Operation::http(&get, &path);
    Ok(generation.decide_by_reference(source, rules::PORT, operation).is_allowed())
}

/// Waits for the answer: a pair that has just been started refuses everything for a while.
fn answers(contender: &Contender, path: &str, expected: u16) -> Result<(), Failure> {
    let start = std::time::Instant::now();
    loop {
        match contenders::ask(contender.front, "GET", path) {
            Some((status, _)) if status == expected => return Ok(()),
            other if start.elapsed() > std::time::Duration::from_secs(60) => {
                return Err(
                    contender.fault(&format!("GET {path} should be answered with {expected}: {other:?}"))
                );
            }
            _ => wait::pause(std::time::Duration::from_millis(50)),
        }
    }
}

/// What a request costs the inbound proxy, in microseconds, and that beyond what it costs with one rule, round by round.
fn costs(settings: &[Setting], size: usize, name: &str) -> Option<(Spread, Spread)> {
    let cells = |size: usize| {
        let setting = settings.iter().find(|setting| setting.size == size)?;
        Some(&setting.contenders.iter().find(|(contender, _)| contender.name == name)?.1)
    };
    let (own, base) = (cells(size)?, cells(SIZES[0])?);
    let extra = own.iter().zip(base).map(|(own, base)| own.cost(1) - base.cost(1));
    Some((Spread::of(own.iter().map(|cell| cell.cost(1))), Spread::of(extra)))
}

fn strangers(settings: &[Setting]) -> f64 {
    let cells = settings.iter().flat_map(|setting| &setting.contenders).flat_map(|(_, cells)| cells);
    Spread::of(cells.map(|cell| cell.strangers)).median
}

fn table(settings: &[Setting]) -> String {
    let mut text = String::from(
        "| rules | sidecar, CPU us per request | extra | Envoy, CPU us per request | extra |\n|---|---|---|---|---|\n",
    );
    for size in SIZES {
        let show = |name: &str| match costs(settings, size, name) {
            Some((own, _)) if size == SIZES[0] => format!("{} | -", own.show(1)),
            Some((own, extra)) => format!("{} | {}", own.show(1), extra.show(1)),
            None => "- | -".to_owned(),
        };
        let _ = writeln!(text, "| {size} | {} | {} |", show("postern"), show("envoy"));
    }
    let strangers = strangers(settings);
    let _ = match strangers > STRANGERS {
        true => writeln!(
            text,
            "\nTOO NOISY TO JUDGE: other programs kept {strangers:.2} processors busy. Do not quote these figures."
        ),
        false => {
            writeln!(text, "\nQuiet enough: strangers used {strangers:.2} processors in the middle round.")
        }
    };
    text
}

fn to_json(header: &str, settings: &[Setting]) -> Value {
    let sizes = SIZES.map(|size| {
        let of = |name: &str| {
            costs(settings, size, name)
                .map(|(own, extra)| json!({"us_per_request": own.to_json(), "extra_us": extra.to_json()}))
        };
        json!({"rules": size, "postern": of("postern"), "envoy": of("envoy")})
    });
    let strangers = strangers(settings);
    json!({
        "bench": "policy",
        "run": header,
        "too_noisy": (strangers > STRANGERS).then(|| format!("other programs kept {strangers:.2} processors busy")),
        "sizes": sizes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_questions_are_about_the_callers_rules() {
        for size in [1, 1_000] {
            let generation = load(&files(size), &scope().unwrap(), 1).unwrap();
            let paths = allowed_paths(size);
            assert_eq!(paths.len(), PATHS);
            for path in &paths {
                assert!(is_allowed(&generation, path).unwrap(), "{path}");
                assert_eq!(path.len(), paths[0].len(), "{path}");
            }
            assert!(!is_allowed(&generation, "/v1/q3/7").unwrap());
            assert!(export::envoy(&generation).losses.is_empty());
        }
        let last = &allowed_paths(10_000)[PATHS - 1];
        assert!(
            last.starts_with("/v1/q9") || last.starts_with("/v1/q8"),
            "the last rules are asked for too: {last}"
        );
    }

    #[test]
    fn a_script_asks_for_every_path() {
        let script = script(&["/a".to_owned(), "/b".to_owned()]);
        assert!(script.starts_with("local paths = {\"/a\", \"/b\"}\n"), "{script}");
    }
}

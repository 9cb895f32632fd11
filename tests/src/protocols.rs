//! Which protocols pass, and between which programs: what the tests saw, for `docs/protocols.md`.
//!
//! A test notes each exchange that it has watched and, at its end, leaves all of them in `target/protocols`. The program
//! `protocols` makes the page of what lies there and holds it against the one in the repository, so a protocol that was not
//! seen any more makes a difference. Versions are on the page for whoever reads it; they are not compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::{foreign, target_directory, wait};

/// Where the page's table begins and ends, and where versions follow that nobody compares.
const BEGIN: &str = "<!-- made by `cargo run -p postern-tests --bin protocols`: begin -->\n";
const END: &str = "<!-- end -->\n";
const VERSIONS: &str = "<!-- versions, not compared: begin -->\n";

/// How the workload's sidecar knows what a port speaks.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Way {
    /// The port's protocol is declared.
    Declared,
    /// It is not: the first bytes tell.
    Detected,
}

/// What one test has seen.
#[derive(Debug)]
pub struct Notes {
    group: &'static str,
    title: &'static str,
    rows: BTreeMap<(usize, String), Row>,
    way: Way,
}

#[derive(Debug)]
struct Row {
    protocol: String,
    client: String,
    server: String,
    seen: String,
    ways: BTreeSet<Way>,
    over_ipv6: bool,
}

impl Notes {
    /// Notes of a group of protocols; groups are on the page in the order of their names.
    pub fn new(group: &'static str, title: &'static str) -> Self {
        Self { group, title, rows: BTreeMap::new(), way: Way::Declared }
    }

    /// What follows was seen this way.
    pub fn way(&mut self, way: Way) {
        self.way = way;
    }

    /// `client` and `server` spoke `protocol`, and what was `seen` is what they would have without a mesh. The client called
    /// `at`.
    pub fn saw(&mut self, at: &str, protocol: &str, [client, server]: [&str; 2], seen: &str) {
        let name = format!("{protocol}|{client}|{server}|{seen}");
        let known = self.rows.keys().find(|(_, known)| *known == name).cloned();
        let key = known.unwrap_or((self.rows.len(), name));
        let row = self.rows.entry(key).or_insert_with(|| Row {
            protocol: protocol.to_owned(),
            client: client.to_owned(),
            server: server.to_owned(),
            seen: seen.to_owned(),
            ways: BTreeSet::new(),
            over_ipv6: false,
        });
        row.ways.insert(self.way);
        row.over_ipv6 |= at.matches(':').count() > 1;
    }

    /// Leaves them for the page, once the test has seen everything that it is about.
    pub fn leave(self) {
        let rows: Vec<Value> = self
            .rows
            .values()
            .map(|row| {
                json!({
                    "protocol": row.protocol, "client": row.client, "server": row.server, "seen": row.seen,
                    "declared": row.ways.contains(&Way::Declared), "detected": row.ways.contains(&Way::Detected),
                    "ipv6": row.over_ipv6,
                })
            })
            .collect();
        let programs: BTreeSet<&str> =
            self.rows.values().flat_map(|row| [row.client.as_str(), row.server.as_str()]).collect();
        let versions: BTreeMap<&str, String> =
            programs.into_iter().map(|program| (program, version(program))).collect();
        let all = json!({"title": self.title, "rows": rows, "versions": versions});
        let directory = directory();
        std::fs::create_dir_all(&directory).expect("the target directory can be written to");
        let path = directory.join(format!("{}.json", self.group));
        std::fs::write(&path, format!("{all:#}\n"))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fn directory() -> PathBuf {
    target_directory().join("protocols")
}

/// A program's version, as it says it itself.
fn version(program: &str) -> String {
    let python = target_directory().join("foreign/venv/bin/python").display().to_string();
    let words: Vec<&str> = match program {
        "nginx" => vec!["nginx", "-v"],
        "PostgreSQL" => vec!["sh", "-c", "/usr/lib/postgresql/*/bin/postgres --version"],
        "psql" => vec!["sh", "-c", "/usr/lib/postgresql/*/bin/psql --version"],
        "MariaDB" => vec!["mariadbd", "--version"],
        "Redis" => vec!["redis-cli", "--version"],
        "msmtpd" => {
            return run(&[
                &target_directory().join("foreign/msmtp/usr/bin/msmtpd").display().to_string(),
                "--version",
            ]);
        }
        "openssl" => vec!["openssl", "version"],
        "socat" => vec!["socat", "-V"],
        "Node.js http" | "Node.js fetch" | "Node.js net" => vec!["node", "--version"],
        "Python http.server" | "Python smtplib" | "Python urllib" => vec!["/usr/bin/python3", "--version"],
        "grpcio" => vec![&python, "-c", "import grpc; print(grpc.__version__)"],
        "websockets" => vec![&python, "-c", "import websockets; print(websockets.__version__)"],
        other => vec![other, "--version"],
    };
    run(&words)
}

/// The first word of what a program says that looks like a version.
fn run(words: &[&str]) -> String {
    let ran = foreign::run(Command::new(words[0]).args(&words[1..]), wait::PATIENCE);
    let said = format!("{} {}", ran.text(), ran.stderr);
    let is_version =
        |word: &&str| word.starts_with(|first: char| first.is_ascii_digit()) && word.contains('.');
    let found = said.split([' ', '\n', '/', ',', '=', 'v', '-']).find(is_version);
    found.unwrap_or_else(|| panic!("{words:?} does not say its version: {said}")).to_owned()
}

/// The page, made anew in the text of the one that is there.
///
/// # Errors
///
/// What is wrong with the page or with the notes.
pub fn page(text: &str) -> Result<String, String> {
    let (before, rest) = text.split_once(BEGIN).ok_or("the page does not say where its table begins")?;
    let (_, rest) = rest.split_once(END).ok_or("the page does not say where its table ends")?;
    let (after, _) = rest.split_once(VERSIONS).ok_or("the page does not say where versions are")?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory())
        .map_err(|error| format!("{}: {error}: the tests `protocols` leave it", directory().display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    let (mut table, mut versions) = (String::new(), BTreeMap::new());
    for file in &files {
        let group = read(file)?;
        let _ = writeln!(table, "\n### {}\n", word(&group["title"]));
        table.push_str("| protocol | client | server | port declared | found out | what was seen |\n|---|---|---|---|---|---|\n");
        for row in group["rows"].as_array().into_iter().flatten() {
            let yes = |name: &str| if row[name] == true { "yes" } else { "" };
            let over = if row["ipv6"] == true { " (IPv4 and IPv6)" } else { "" };
            let names = ["protocol", "client", "server"].map(|name| word(&row[name]).to_owned()).join(" | ");
            let (declared, detected, seen) = (yes("declared"), yes("detected"), word(&row["seen"]));
            let _ = writeln!(table, "| {names} | {declared} | {detected} | {seen}{over} |");
        }
        for (program, version) in group["versions"].as_object().into_iter().flatten() {
            versions.insert(program.clone(), word(version).to_owned());
        }
    }
    let versions: Vec<String> =
        versions.into_iter().map(|(program, version)| format!("{program} {version}")).collect();
    Ok(format!("{before}{BEGIN}{table}\n{END}{after}{VERSIONS}{}.\n", versions.join(", ")))
}

/// The page without what may differ between machines.
#[must_use]
pub fn compared(page: &str) -> &str {
    page.split_once(VERSIONS).map_or(page, |(compared, _)| compared)
}

fn read(file: &Path) -> Result<Value, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

//! `postern policy open`: break the glass, for a while and for a reason; list what is open, and close it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use postern_policy::yaml::Span;
use postern_policy::{DocumentSummary, Scope, SourceFile, load};
use postern_proxy::documents::opening::{Opening, fresh_name};
use postern_proxy::documents::read_directory;
use postern_svid::{Clock as _, SystemClock, TrustDomain};
use serde_json::{Value, json};

use super::{Failure, live, question, refused};
use crate::say;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The namespace whose workloads proven peers may call.
    #[arg(long, required_unless_present_any = ["list", "close"])]
    namespace: Option<String>,
    /// For how long, at most 4h: `15m`.
    #[arg(long = "for", value_name = "TIME", required_unless_present_any = ["list", "close"])]
    length: Option<String>,
    /// Why: it stands in the log.
    #[arg(long, required_unless_present_any = ["list", "close"])]
    reason: Option<String>,
    /// Who may call, as often as there are callers: a SPIFFE id, NAMESPACE/SERVICE-ACCOUNT or NAMESPACE/* [default: every
    /// proven peer].
    #[arg(long, value_name = "CALLER")]
    from: Vec<String>,
    /// Who opens [default: the user's name].
    #[arg(long)]
    by: Option<String>,
    /// Show what is open.
    #[arg(long, conflicts_with_all = ["namespace", "length", "reason", "from", "close"])]
    list: bool,
    /// End one, or all if none is named, before it ends by itself.
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["namespace", "length", "reason", "from"])]
    close: Option<String>,
    /// The directory of documents: for all who read it, as long as its other documents are good.
    #[arg(long, value_name = "DIR", conflicts_with = "sidecars", required_unless_present = "sidecars")]
    documents: Option<PathBuf>,
    /// The sidecar's admin socket, as often as there are sidecars: over the last good set of each.
    #[arg(long = "sidecar", value_name = "SOCKET")]
    sidecars: Vec<PathBuf>,
    /// The namespace whose documents may speak for the whole mesh.
    #[arg(long, default_value = "postern-system")]
    root_namespace: String,
    /// Machine-readable output.
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let close = args.close.as_deref().map(|name| Some(name).filter(|name| !name.is_empty()));
    match (&args.documents, close) {
        (Some(directory), _) if args.list => list_documents(args, directory),
        (Some(directory), Some(name)) => close_documents(args, directory, name),
        (Some(directory), None) => open_documents(args, directory),
        (None, _) if args.list => list_sidecars(args),
        (None, Some(name)) => {
            let body = json!({ "name": name });
            Ok(live::each(&args.sidecars, args.json, "/v1/policy/close", &body, |answer| {
                format!("closed: generation {} is in force", answer["generation"])
            }))
        }
        (None, None) => {
            let (opening, seconds) = opening(args)?;
            let body = json!({
                "namespace": opening.namespace(), "from": args.from, "reason": args.reason, "by": by(args),
                "seconds": seconds,
            });
            Ok(live::each(&args.sidecars, args.json, "/v1/policy/open", &body, |answer| {
                let shown = |key: &str| answer[key].as_str().unwrap_or("-").to_owned();
                format!("{} is open until {}", shown("name"), shown("until"))
            }))
        }
    }
}

/// What is asked for, checked here with the sidecar's own code.
fn opening(args: &Args) -> Result<(Opening, u64), Failure> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let Some(Span(length)) = Span::parse(&text(&args.length)) else {
        return Err(question("--for is a length of time such as 90s, 15m or 1h"));
    };
    let by = by(args);
    let opening =
        Opening::new(&text(&args.namespace), &args.from, &text(&args.reason), by.as_deref(), length);
    Ok((opening.map_err(question)?, length.as_secs()))
}

fn by(args: &Args) -> Option<String> {
    args.by.clone().or_else(|| std::env::var("USER").ok()).or_else(|| std::env::var("LOGNAME").ok())
}

fn open_documents(args: &Args, directory: &Path) -> Result<ExitCode, Failure> {
    let (opening, _) = opening(args)?;
    let name = fresh_name();
    let now = SystemClock.wall();
    let text = opening.document(&name, &args.root_namespace, now);
    let path = directory.join(format!("{name}.yaml"));
    let mut files = read_directory(directory)?;
    files.push(SourceFile { name: path.display().to_string(), text: text.clone().into_bytes() });
    // A set that is refused as a whole opens nothing.
    if let Err(errors) = load(&files, &scope(args, &files)?, 0) {
        let meaning = "sidecars would refuse this set, and nothing would open; `--sidecar` opens over the last good set";
        return Ok(refused(&errors, args.json, meaning));
    }
    write(directory, &path, &text).map_err(|error| question(format!("{}: {error}", path.display())))?;
    let (_, until) = opening.span(now);
    if args.json {
        say(json!({ "ok": true, "name": name, "file": path, "until": rfc3339(until) }));
    } else {
        say(format_args!("{name} is open until {}: {}", rfc3339(until), path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Under another name, which no reader takes, and moved.
fn write(directory: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    let new = directory.join(format!(".{}.new", std::process::id()));
    let written =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, path)
        });
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

fn scope(args: &Args, files: &[SourceFile]) -> Result<Scope, Failure> {
    let trust_domain = match postern_policy::trust_domain_of(files) {
        Some(found) => found,
        None => TrustDomain::parse("cluster.local").map_err(question)?,
    };
    Ok(Scope { trust_domain, root_namespace: args.root_namespace.clone(), workload: None })
}

/// The files of a directory that hold one document, which breaks the glass. Others may be broken: these are not.
fn openings(args: &Args, directory: &Path) -> Result<Vec<(SourceFile, DocumentSummary)>, Failure> {
    let mut out = Vec::new();
    for file in read_directory(directory)? {
        let files = [file];
        let scope = scope(args, &files)?;
        let Ok(generation) = load(&files, &scope, 0) else { continue };
        let [file] = files;
        if let [only] = generation.documents()
            && only.break_glass.is_some()
        {
            out.push((file, only.clone()));
        }
    }
    Ok(out)
}

fn list_documents(args: &Args, directory: &Path) -> Result<ExitCode, Failure> {
    let now = SystemClock.wall();
    let found = openings(args, directory)?;
    let entries: Vec<Value> = found
        .iter()
        .map(|(file, document)| {
            let is_open = document.break_glass.as_ref().is_some_and(|glass| glass.is_open(now));
            json!({ "name": document.name, "file": file.name, "open": is_open, "says": document.break_glass })
        })
        .collect();
    if args.json {
        say(json!({ "ok": true, "open": entries }));
        return Ok(ExitCode::SUCCESS);
    }
    for entry in &entries {
        let over = if entry["open"] == true { "" } else { " (not now)" };
        let name = entry["name"].as_str().unwrap_or_default();
        say(format_args!("{}{over}", live::opened(name, &entry["says"])));
    }
    if entries.is_empty() {
        say("nothing is open");
    }
    Ok(ExitCode::SUCCESS)
}

fn close_documents(args: &Args, directory: &Path, name: Option<&str>) -> Result<ExitCode, Failure> {
    let mut closed = Vec::new();
    for (file, document) in openings(args, directory)? {
        if name.is_none_or(|name| name == &*document.name) {
            fs::remove_file(&file.name).map_err(|error| question(format!("{}: {error}", file.name)))?;
            closed.push(file.name);
        }
    }
    if closed.is_empty() {
        let what = name.unwrap_or("such document");
        let error = question(format!("{}: no {what} is there that breaks the glass", directory.display()));
        match error {
            error if args.json => super::json::say_errors(&error.errors()),
            Failure::Question(error) => eprintln!("error: {error}"),
            Failure::Documents(errors) => eprintln!("{errors}"),
        }
        return Ok(ExitCode::from(1));
    }
    if args.json {
        say(json!({ "ok": true, "removed": closed }));
        return Ok(ExitCode::SUCCESS);
    }
    for file in closed {
        say(format_args!("removed {file}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn list_sidecars(args: &Args) -> Result<ExitCode, Failure> {
    let mut all = Vec::new();
    for socket in &args.sidecars {
        let page = live::page(socket, "/v1/policy")?;
        let open = page["open"].as_object().cloned().unwrap_or_default();
        if !args.json {
            for (document, glass) in &open {
                say(format_args!("{}: {}", socket.display(), live::opened(document, glass)));
            }
            if open.is_empty() {
                say(format_args!("{}: nothing is open", socket.display()));
            }
        }
        all.push(json!({ "sidecar": socket.display().to_string(), "ok": true, "open": open }));
    }
    if args.json {
        say(json!({ "ok": true, "sidecars": all }));
    }
    Ok(ExitCode::SUCCESS)
}

fn rfc3339(at: SystemTime) -> String {
    let at = time::OffsetDateTime::from(at);
    at.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}

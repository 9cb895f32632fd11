//! What is asked of running sidecars, through their admin sockets.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use postern_policy::{Diagnostic, Diagnostics, Scope, SourceFile};
use postern_svid::TrustDomain;
use serde_json::{Value, json};

use super::{Failure, plural, question};
use crate::{proxy, say};

/// One request to one sidecar: its status and its JSON.
pub(super) fn ask(socket: &Path, method: &str, path: &str, body: &Value) -> Result<(u16, Value), Failure> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let (status, answer) = proxy::ask(socket, method, path, &body).map_err(|error| {
        question(format!("{}: {error} (is the sidecar running, and are you its user?)", socket.display()))
    })?;
    let answer = serde_json::from_str(&answer)
        .map_err(|error| question(format!("{}: the answer is not JSON: {error}", socket.display())))?;
    Ok((status, answer))
}

/// The page, or why there is none.
pub(super) fn page(socket: &Path, path: &str) -> Result<Value, Failure> {
    match ask(socket, "GET", path, &Value::Null)? {
        (200, page) => Ok(page),
        (_, refusal) => Err(question(format!("{}: {}", socket.display(), error_of(&refusal)))),
    }
}

pub(super) fn error_of(answer: &Value) -> &str {
    answer["error"].as_str().unwrap_or("it is refused without a reason")
}

/// Asks the same of each sidecar, whatever the others answer. 0: all obeyed; 1: one did not; 2: one found the question
/// wrong.
pub(super) fn each(
    sockets: &[PathBuf],
    as_json: bool,
    path: &str,
    body: &Value,
    text: impl Fn(&Value) -> String,
) -> ExitCode {
    let mut worst = 0;
    let mut all = Vec::new();
    for socket in sockets {
        let place = socket.display().to_string();
        let (code, answer) = match ask(socket, "POST", path, body) {
            Ok((200, answer)) => (0, Ok(answer)),
            Ok((status, answer)) => {
                (if status == 400 { 2 } else { 1 }, Err(question(error_of(&answer).to_owned())))
            }
            Err(failure) => (1, Err(failure)),
        };
        worst = worst.max(code);
        match answer {
            Ok(answer) if as_json => all.push(json!({ "sidecar": place, "ok": true, "answer": answer })),
            Ok(answer) => say(format_args!("{place}: {}", text(&answer))),
            Err(failure) if as_json => {
                all.push(json!({ "sidecar": place, "ok": false, "errors": failure.errors() }));
            }
            Err(Failure::Question(error)) => eprintln!("{place}: error: {error}"),
            Err(Failure::Documents(errors)) => eprintln!("{place}: {errors}"),
        }
    }
    if as_json {
        say(json!({ "ok": worst == 0, "sidecars": all }));
    }
    ExitCode::from(worst)
}

/// The documents in force at a sidecar, with the scope that it loads them in.
pub(super) fn documents(socket: &Path) -> Result<(Vec<SourceFile>, Scope), Failure> {
    let page = page(socket, "/v1/policy/documents")?;
    let bad = || question(format!("{}: the answer holds no documents", socket.display()));
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(bad);
    let mut files = Vec::new();
    for file in page["files"].as_array().ok_or_else(bad)? {
        files.push(SourceFile { name: text(&file["name"])?, text: text(&file["text"])?.into_bytes() });
    }
    let trust_domain = TrustDomain::parse(&text(&page["trustDomain"])?).map_err(question)?;
    Ok((files, Scope { trust_domain, root_namespace: text(&page["rootNamespace"])?, workload: None }))
}

/// `postern policy check --sidecar`: what became of the last load there.
pub(super) fn check(socket: &Path, as_json: bool) -> Result<ExitCode, Failure> {
    let page = page(socket, "/v1/policy")?;
    let generation = page["generation"].as_u64();
    let refused = &page["lastError"];
    let ok = generation.is_some() && refused.is_null();
    if as_json {
        let mut told = json!({ "ok": ok, "policy": page });
        if !ok {
            let nothing = || json!(Diagnostics::from(Diagnostic::whole("", "no documents are in force")));
            let known = refused["diagnostics"].as_array().filter(|found| !found.is_empty());
            told["errors"] = known.map_or_else(nothing, |found| json!(found));
        }
        say(told);
        return Ok(ExitCode::from(u8::from(!ok)));
    }
    if let Some(text) = refused["text"].as_str() {
        eprintln!("{text}\n");
    }
    for warning in page["warnings"].as_array().into_iter().flatten() {
        eprintln!("warning: {}", warning["message"].as_str().unwrap_or_default());
    }
    let is_stale = page["stale"] == true;
    let state = match (generation, refused.is_null()) {
        (None, _) if is_stale => {
            "everything is denied: no good documents could be read for too long".to_owned()
        }
        (None, _) => "everything is denied: no documents are in force".to_owned(),
        (Some(generation), true) => format!("ok: generation {generation} is in force"),
        (Some(generation), false) => {
            format!("refused at {}: generation {generation} stays in force", shown(&refused["at"]))
        }
    };
    let count = page["documents"].as_array().map_or(0, Vec::len);
    let since = if generation.is_some() {
        format!(
            " since {}, from {}: {}",
            shown(&page["loadedAt"]),
            shown(&page["source"]),
            plural(count, "document")
        )
    } else {
        String::new()
    };
    say(format_args!("{state}{since}"));
    if let Some(pin) = page["pinned"].as_object() {
        let waits = if pin["waitingDigest"].is_null() { "" } else { ", and others wait in the directory" };
        say(format_args!(
            "put back by an operator at {}{waits}: `postern policy rollback --resume` lets go",
            shown(&pin["since"])
        ));
    }
    for (document, open) in page["open"].as_object().into_iter().flatten() {
        say(format_args!("open: {}", opened(document, open)));
    }
    Ok(ExitCode::from(u8::from(!ok)))
}

/// One line about broken glass.
pub(super) fn opened(document: &str, open: &Value) -> String {
    let by = open["by"].as_str().map(|by| format!(" by {by}")).unwrap_or_default();
    format!("{document} until {}{by}: {}", shown(&open["until"]), shown(&open["reason"]))
}

fn shown(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// `postern policy explain ID --sidecar`.
pub(super) fn decision(socket: &Path, id: &str, as_json: bool) -> Result<ExitCode, Failure> {
    // An id goes into a request's target: nothing but what ids are made of.
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(question(format!("{id:?} is no decision id")));
    }
    let (status, page) = ask(socket, "GET", &format!("/v1/decisions/{id}"), &Value::Null)?;
    match status {
        200 => {}
        404 | 410 => {
            if as_json {
                let errors = question(error_of(&page)).errors();
                say(json!({ "ok": false, "errors": errors, "code": page["code"] }));
            } else {
                eprintln!("{}: {}", socket.display(), error_of(&page));
            }
            return Ok(ExitCode::from(1));
        }
        _ => return Err(question(format!("{}: {}", socket.display(), error_of(&page)))),
    }
    let decision = &page["decision"];
    if as_json {
        let mut told = page.clone();
        told["ok"] = true.into();
        say(told);
    } else {
        say(format_args!(
            "{id}: {} ({}) at {}, generation {}",
            shown(&decision["effect"]),
            shown(&decision["reason"]),
            shown(&decision["at"]),
            decision["generation"]
        ));
        say(format_args!(
            "  {} {} on port {} from {} ({})",
            shown(&decision["method"]),
            shown(&decision["path"]),
            decision["port"],
            shown(&decision["peer"]),
            shown(&decision["address"])
        ));
        if let Some(limit) = decision["limit"].as_str() {
            say(format_args!("  the rate limit {limit} refuses what the policy allows"));
        }
        match (decision["rule"].as_str(), page["rule"]["place"].as_object()) {
            (Some(rule), Some(place)) => say(format_args!(
                "  rule {rule} ({}:{}:{})",
                shown(&place["file"]),
                place["line"],
                place["column"]
            )),
            (Some(rule), None) => say(format_args!("  rule {rule}")),
            (None, _) => say("  no rule"),
        }
        if let Some(text) = page["text"].as_str() {
            say(text);
        }
        if let Some(note) = page["note"].as_str() {
            say(format_args!("({note})"));
        }
    }
    Ok(ExitCode::from(u8::from(decision["effect"] != "allow")))
}

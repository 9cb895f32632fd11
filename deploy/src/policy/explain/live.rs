//! `postern policy explain --sidecar`: about a decision that a sidecar made, or about a call to its workload now.

use std::path::Path;
use std::process::ExitCode;

use super::Args;
use crate::policy::{Failure, live, question};
use crate::say;

pub(super) fn ask(args: &Args, socket: &Path) -> Result<ExitCode, Failure> {
    let first = args.path.display().to_string();
    if args.to.is_empty() && args.from.is_empty() && args.operation.is_empty() {
        return live::decision(socket, &first, args.set.json);
    }
    if args.at.is_some() || args.labels.is_some() || args.workload_port {
        return Err(question(
            "a sidecar answers for its own workload, now: leave --at, --labels and --workload-port out",
        ));
    }
    let port = args.to.rsplit(':').next().and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0);
    let port = port.ok_or_else(|| question("--to needs the workload's port: --to :8080"))?;
    let from = match args.from.as_str() {
        "" => return Err(question("--from is a SPIFFE id, namespace/service-account or unauthenticated")),
        "unauthenticated" => None,
        named => Some(named.to_owned()),
    };
    let from = crate::proxy::caller(socket, from)
        .map_err(|error| question(format!("{}: {error}", socket.display())))?;
    let (method, path) = match (first.as_str(), args.operation.as_slice()) {
        (tcp, []) if tcp.eq_ignore_ascii_case("tcp") => (None, None),
        (tcp, [_]) if tcp.eq_ignore_ascii_case("tcp") => {
            return Err(question("opaque TCP has no path: say tcp alone, or METHOD /path"));
        }
        (method, [path]) => (Some(method), Some(path)),
        _ => return Err(question("say METHOD /path, or tcp, and no documents")),
    };
    let split = |line: &String| {
        let (name, value) =
            line.split_once(':').ok_or_else(|| question("--header is a name, a colon and a value"))?;
        Ok(serde_json::json!([name.trim(), value.trim()]))
    };
    let headers: Option<Vec<serde_json::Value>> = match args.headers.as_slice() {
        [] => None,
        lines => Some(lines.iter().map(split).collect::<Result<_, Failure>>()?),
    };
    let claims = args.claims.as_deref().map(super::claims).transpose();
    let claims = claims.map_err(|error| question(format!("--claims: {error}")))?;
    let asked = serde_json::json!({
        "from": from, "address": args.address, "port": port, "method": method, "path": path,
        "host": args.host, "headers": headers, "upgrade": args.upgrade, "sni": args.sni,
        "claims": claims,
    });
    let (status, mut answer) = live::ask(socket, "POST", "/v1/policy/explain", &asked)?;
    if status != 200 {
        return Err(question(format!("{}: {}", socket.display(), live::error_of(&answer))));
    }
    let allowed = answer["explanation"]["verdict"]["allowed"] == true;
    if args.set.json {
        let mut value = answer["explanation"].take();
        value["ok"] = true.into();
        value["port"] = port.into();
        say(value);
    } else {
        say(answer["text"].as_str().unwrap_or_default().trim_end());
    }
    Ok(ExitCode::from(u8::from(!allowed)))
}

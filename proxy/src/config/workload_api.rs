//! `workloadApi`: the socket at which the workload gets its own certificate, and who may ask there.

use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use postern_agent::workload::Endpoint;
use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, SourceFile};
use serde::Deserialize;

/// What the kernel takes as a socket's name is 107 bytes; it is made under a name that is 4 longer.
const MAX_PATH: usize = 100;
const MAX_NAMED: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    socket: Spanned<PathBuf>,
    mode: Option<Spanned<String>>,
    allow: Option<Spanned<Allow>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Allow {
    uids: Vec<Spanned<u32>>,
    gids: Vec<Spanned<u32>>,
}

/// Checks the section, each mistake with its place.
pub(super) fn check(
    file: &SourceFile,
    raw: &Raw,
    state_dir: &Path,
    admin_socket: &Path,
    wrong: &mut Diagnostics,
) -> Endpoint {
    socket(file, &raw.socket, state_dir, admin_socket, wrong);
    let named = raw.allow.as_ref().map(|allow| &allow.value);
    if let Some(allow) =
        raw.allow.as_ref().filter(|allow| allow.value.uids.is_empty() && allow.value.gids.is_empty())
    {
        wrong.push(yaml::at(file, allow, "`allow` names nobody").with_help(
            "write `allow: {uids: [1000]}`, or leave it out to answer the sidecar's own user alone",
        ));
    }
    let mut ids = |ids: &[Spanned<u32>], what: &str| {
        if let Some(first) = ids.get(MAX_NAMED) {
            wrong.push(yaml::at(file, first, format!("at most {MAX_NAMED} {what} can be named")));
        }
        if let Some(none) = ids.iter().find(|id| id.value == u32::MAX) {
            wrong.push(yaml::at(file, none, "this number stands for no user and no group"));
        }
        ids.iter().map(|id| id.value).collect()
    };
    let (uids, gids) = match named {
        Some(allow) => (ids(&allow.uids, "users"), ids(&allow.gids, "groups")),
        None => ([geteuid().as_raw()].into(), [].into()),
    };
    // Who may connect is not who is answered: the kernel's word decides that, so others may well be let up to the door.
    let mode = match &raw.mode {
        None => if named.is_some() { 0o666 } else { 0o600 },
        Some(written) => mode(&written.value).unwrap_or_else(|| {
            wrong.push(
                yaml::at(file, written, format!("{:?} is no mode for this socket", written.value))
                    .with_help("write \"0600\", \"0660\" or \"0666\": read and write, for the sidecar's own user at least"),
            );
            0o600
        }),
    };
    Endpoint { socket: raw.socket.value.clone(), mode, uids, gids }
}

fn socket(
    file: &SourceFile,
    written: &Spanned<PathBuf>,
    state_dir: &Path,
    admin_socket: &Path,
    wrong: &mut Diagnostics,
) {
    const HELP: &str = "write a path in a directory of its own, such as /run/postern/workload/api.sock";
    let path = &written.value;
    let problem = if !path.is_absolute() || path.file_name().is_none() {
        "the socket's path must be a whole one: workloads look for it from elsewhere".to_owned()
    } else if path.as_os_str().len() > MAX_PATH {
        format!("a socket's path is at most {MAX_PATH} bytes long")
    } else if path == admin_socket {
        "the admin socket is there".to_owned()
    } else if path.starts_with(state_dir) {
        "the state directory is for the sidecar alone: no workload gets in there".to_owned()
    } else {
        return;
    };
    wrong.push(yaml::at(file, written, problem).with_help(HELP));
}

fn mode(text: &str) -> Option<u32> {
    let octal = text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| octal)?;
    (mode & !0o666 == 0 && mode & 0o600 == 0o600).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn parse(section: &str) -> Result<Endpoint, String> {
        let text = format!(
            "identity: spiffe://demo.postern/ns/shop/sa/orders
stateDir: /state
controlPlane:
  address: 127.0.0.1:1
  spiffeId: spiffe://demo.postern/postern/control
  trustBundle: /b
  joinToken: /t
workload: {{address: 127.0.0.1, ports: [{{port: 8080, protocol: http}}]}}
inbound: {{address: \"127.0.0.1:24143\"}}
outbound: {{address: \"127.0.0.1:24140\"}}
health: {{address: \"127.0.0.1:24191\"}}
admin: {{socket: /run/admin.sock}}
documents: /d
workloadApi: {section}
"
        );
        let config = Config::parse(&SourceFile { name: "sidecar.yaml".to_owned(), text: text.into() });
        config.map(|config| config.workload_api.expect("it is there")).map_err(|wrong| wrong.to_string())
    }

    #[test]
    fn who_may_ask() {
        let own = parse("{socket: /run/w/api.sock}").unwrap();
        assert_eq!((own.mode, own.uids, own.gids), (0o600, [geteuid().as_raw()].into(), [].into()));
        let named = parse("{socket: /run/w/api.sock, allow: {uids: [1000, 1001], gids: [7]}}").unwrap();
        assert_eq!((named.mode, named.uids, named.gids), (0o666, [1000, 1001].into(), [7].into()));
        let mode = parse("{socket: /run/w/api.sock, mode: \"0660\", allow: {gids: [7]}}").unwrap();
        assert_eq!((mode.mode, mode.uids), (0o660, [].into()));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let long = format!("{{socket: /{}}}", "x".repeat(MAX_PATH));
        for (section, problem, place) in [
            ("{socket: api.sock}", "must be a whole one", "14:23"),
            ("{socket: /run/admin.sock}", "the admin socket is there", "14:23"),
            ("{socket: /state/api.sock}", "the state directory is for the sidecar alone", "14:23"),
            (long.as_str(), "at most 100 bytes", "14:23"),
            ("{socket: /w/s, allow: {}}", "`allow` names nobody", "14:36"),
            ("{socket: /w/s, allow: {uids: [4294967295]}}", "stands for no user", "14:44"),
            ("{socket: /w/s, allow: {uids: [-1]}}", "sidecar.yaml", "14:44"),
            ("{socket: /w/s, mode: \"0777\"}", "is no mode for this socket", "14:35"),
            ("{socket: /w/s, mode: \"0060\"}", "is no mode for this socket", "14:35"),
            ("{socket: /w/s, mode: \"+600\"}", "is no mode for this socket", "14:35"),
            ("{socket: /w/s, path: /x}", "unknown", "14:"),
        ] {
            let error = parse(section).expect_err(section);
            assert!(error.contains(problem) && error.contains(place), "{section}: {error}");
        }
    }
}

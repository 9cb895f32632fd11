//! `workload.ports`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use postern_policy::norm::EscapedSlashes;
use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, PortPaths, Protocol, SourceFile, UpgradeName};
use serde::Deserialize;

use super::{File, listeners, upgrades};

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Port {
    pub(super) port: Spanned<u16>,
    protocol: Spanned<String>,
    upgrades: Option<Spanned<Vec<Spanned<String>>>>,
    escaped_slashes: Option<Spanned<String>>,
    preserve_raw_path: Option<Spanned<bool>>,
}

#[derive(Default)]
pub(super) struct Ports {
    pub(super) protocols: BTreeMap<u16, Protocol>,
    pub(super) upgrades: BTreeMap<u16, Vec<UpgradeName>>,
    pub(super) paths: BTreeMap<u16, PortPaths>,
}

/// Checks all of them.
pub(super) fn check(file: &SourceFile, raw: &File, address: IpAddr, wrong: &mut Diagnostics) -> Ports {
    let Ports { mut protocols, mut upgrades, mut paths } = Ports::default();
    for entry in &raw.workload.ports {
        let port = entry.port.value;
        let Some(protocol) = Protocol::parse(&entry.protocol.value) else {
            wrong.push(
                yaml::at(file, &entry.protocol, format!("unknown protocol {:?}", entry.protocol.value))
                    .with_help("one of http, http2, grpc, tcp, tls"),
            );
            continue;
        };
        if port == 0 {
            wrong.push(yaml::at(file, &entry.port, "port 0 is no port"));
        }
        let here = SocketAddr::new(address, port);
        if raw.listeners().any(|(_, own)| listeners::is_at(own.value, here, address)) {
            wrong.push(yaml::at(file, &entry.port, "this is one of the sidecar's own listeners"));
        }
        if protocols.insert(port, protocol).is_some() {
            wrong.push(yaml::at(file, &entry.port, format!("port {port} is declared twice")));
        }
        if let Some(names) = &entry.upgrades {
            upgrades.insert(port, upgrades::check(file, names, protocol, wrong));
        }
        paths.insert(port, self::paths(file, entry, protocol, wrong));
    }
    Ports { protocols, upgrades, paths }
}

/// What a port says about paths, each mistake with its place.
fn paths(file: &SourceFile, entry: &Port, protocol: Protocol, wrong: &mut Diagnostics) -> PortPaths {
    let mut paths = PortPaths {
        escaped_slashes: None,
        preserve_raw_path: entry.preserve_raw_path.as_ref().is_some_and(|flag| flag.value),
    };
    if let Some(word) = &entry.escaped_slashes {
        paths.escaped_slashes = EscapedSlashes::parse(&word.value);
        if paths.escaped_slashes.is_none() {
            wrong.push(
                yaml::at(file, word, format!("unknown value {:?}", word.value))
                    .with_help("one of Reject, Decode, Keep"),
            );
        }
    }
    if let Some((what, help)) = paths.mistake(protocol) {
        let at = match (&entry.escaped_slashes, &entry.preserve_raw_path) {
            (Some(word), _) => yaml::at(file, word, what),
            (None, Some(flag)) => yaml::at(file, flag, what),
            (None, None) => return paths,
        };
        wrong.push(at.with_help(help));
    }
    paths
}

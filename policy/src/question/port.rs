//! What a port carries, as far as it is declared.

use std::fmt;

use super::Refusal;
use crate::norm::CanonHost;
use crate::not_asked::NotAsked;
use crate::port_paths::PortPaths;
use crate::services::{Protocol, ServicePort};
use crate::upgrade::{Upgrade, UpgradeName};
use crate::verdict::Operation;

/// What is declared of a port of the workload.
#[derive(Clone, Copy, Debug)]
pub struct Declared<'a> {
    /// What is spoken there.
    pub protocol: Protocol,
    /// What its requests may turn into, WebSocket aside.
    pub upgrades: &'a [UpgradeName],
    /// How the paths of its requests are read.
    pub paths: PortPaths,
    /// The Service's port that says so; the sidecar's own configuration is taken to say the same. `None`: that
    /// configuration itself.
    pub by: Option<&'a ServicePort>,
}

impl<'a> From<&'a ServicePort> for Declared<'a> {
    fn from(port: &'a ServicePort) -> Self {
        Self { protocol: port.protocol, upgrades: &port.upgrades, paths: port.paths, by: Some(port) }
    }
}

/// Who declares it.
impl fmt::Display for Declared<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            Some(port) => write!(f, "the Service {} declares it {}", port.service, self.protocol),
            None => write!(f, "`workload.ports` declare it {}", self.protocol),
        }
    }
}

impl Declared<'_> {
    fn refusal(&self, why: NotAsked, text: String, help: String) -> Box<Refusal> {
        Box::new(Refusal { why, text, place: self.by.map(|port| port.place.clone()), help: Some(help) })
    }

    /// Where something has to be written to hold.
    fn places(&self) -> String {
        match self.by {
            Some(port) => {
                format!(
                    "of port {} of the Service {}, and in its sidecar's `workload.ports`",
                    port.port, port.service
                )
            }
            None => "in `workload.ports` of the sidecar, and in the Service".to_owned(),
        }
    }
}

pub(super) fn carries(
    port: u16,
    declared: Option<Declared<'_>>,
    is_tunnel: bool,
) -> Result<(), Box<Refusal>> {
    let Some(declared) = declared else { return Ok(()) };
    let Err(why) = declared.protocol.carries(is_tunnel) else { return Ok(()) };
    let places = declared.places();
    let (text, help) = match is_tunnel {
        true => (
            format!("port {port} takes requests and no opaque bytes: {declared}"),
            format!(
                "ask with a METHOD and a path; or, if the workload speaks something else there, write `protocol: tcp` (or `tls`) {places}"
            ),
        ),
        false => (
            format!("port {port} carries opaque bytes, in which no request is read: {declared}"),
            format!(
                "ask with `tcp`; or, if the workload speaks HTTP there, write `protocol: http` (`http2`, `grpc`) {places}"
            ),
        ),
    };
    Err(declared.refusal(why, text, help))
}

/// What is known of a handshake: at a port declared `tcp` nothing of it is read.
pub(super) fn handshake<'a>(
    port: u16,
    declared: Option<Declared<'_>>,
    sni: Option<&'a CanonHost>,
    notes: &mut Vec<String>,
) -> Operation<'a> {
    match declared {
        Some(declared) if declared.protocol == Protocol::Tcp => {
            notes.push(format!("nothing is read at port {port}, not even a server name: {declared}"));
            Operation::Tcp
        }
        _ => Operation::Tls { sni },
    }
}

/// What the request turns into, and the method by which it is judged.
pub(super) fn upgrade(
    port: u16,
    declared: Option<Declared<'_>>,
    asked: Option<&Upgrade>,
    method: &str,
    notes: &mut Vec<String>,
) -> Result<Option<(Upgrade, &'static str)>, Box<Refusal>> {
    let Some(asked) = asked else { return Ok(None) };
    let name = asked.as_str();
    let found = match declared {
        Some(declared) => Upgrade::at_port(name.as_bytes(), declared.upgrades).map_err(|why| {
            declared.refusal(
                why,
                format!(
                    "port {port} lists no upgrade to {name}, and {declared}; a caller's sidecar leaves it out, and \
                     sends what HTTP/1.1 can say without it as a plain request"
                ),
                match declared.protocol {
                    Protocol::Http => format!("add {name} to `upgrades` {}; or ask without --upgrade", declared.places()),
                    _ => "only ports of the protocol http list upgrades: ask without --upgrade".to_owned(),
                },
            )
        })?,
        None => asked.clone(),
    };
    let judged = found.method(method.as_bytes()).map_err(|why| {
        Box::new(Refusal {
            why,
            text: format!("an upgrade to {name} is carried with GET and POST, not with another method"),
            place: None,
            help: Some("ask with GET or POST, or without --upgrade".to_owned()),
        })
    })?;
    if judged != method {
        notes.push(format!("a request that asks for {name} is judged as {judged}, whatever its method"));
    }
    Ok(Some((found, judged)))
}

//! What a sidecar says about itself on its admin socket, as far as the expectations need it.

use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::demo::failure::{Explain, Failure, ensure};
use crate::demo::http::{Client, Peer};
use crate::demo::plan::Service;

/// A client of one admin socket.
#[derive(Debug)]
pub(crate) struct Admin {
    service: Service,
    client: Client,
}

/// The sidecar's own certificate and its tie to the control plane.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) id: String,
    /// Lower-case hexadecimal without separators or leading zeros.
    pub(crate) serial: String,
    pub(crate) not_after: SystemTime,
    pub(crate) connected: bool,
    pub(crate) last_error: Option<String>,
    pub(crate) next_renewal: Option<SystemTime>,
    /// Tries to get a certificate that failed, since the sidecar started.
    pub(crate) failures: u64,
}

/// The policy set in force, and the refused one if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) generation: u64,
    /// What is wrong with the newest set, if it was refused.
    pub(crate) mistakes: Vec<Mistake>,
}

/// One reason why a set of documents was refused.
#[derive(Clone, Debug)]
pub(crate) struct Mistake {
    pub(crate) file: String,
    pub(crate) line: u64,
    pub(crate) column: u64,
    pub(crate) message: String,
}

/// One verdict, as it was recorded.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    pub(crate) id: String,
    pub(crate) effect: String,
    pub(crate) rule: String,
    pub(crate) reason: String,
    pub(crate) direction: String,
    pub(crate) peer: String,
    pub(crate) method: String,
    pub(crate) path: String,
}

impl Admin {
    /// A client of `service`'s sidecar.
    pub(crate) fn new(service: Service, socket: PathBuf) -> Self {
        Self { service, client: Client::new(Peer::Unix(socket)) }
    }

    /// `/v1/identity`.
    pub(crate) async fn identity(&self) -> Result<Identity, Failure> {
        let answer = self.read("/v1/identity").await?;
        let control = &answer["controlPlane"];
        Ok(Identity {
            id: text(&answer["id"]),
            serial: serial(&text(&answer["serial"])),
            not_after: instant(&answer["notAfter"])
                .explain(format!("{}: no notAfter in {answer}", self.service))?,
            connected: control["connected"].as_bool().unwrap_or(false),
            last_error: control["lastError"].as_str().map(str::to_owned),
            next_renewal: instant(&control["nextRenewal"]),
            failures: control["failures"]
                .as_u64()
                .explain(format!("{}: no failures in {answer}", self.service))?,
        })
    }

    /// `/v1/policy`.
    pub(crate) async fn policy(&self) -> Result<Policy, Failure> {
        let answer = self.read("/v1/policy").await?;
        let generation = answer["generation"].as_u64();
        let diagnostics =
            answer["lastError"]["diagnostics"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(Policy {
            generation: generation.explain(format!("{}: no generation in {answer}", self.service))?,
            mistakes: diagnostics.iter().filter(|one| one["severity"] == "error").map(mistake).collect(),
        })
    }

    /// The newest recorded decision for which `wanted` holds; `what` names it in the failure.
    pub(crate) async fn decision(
        &self,
        what: &str,
        wanted: impl Fn(&Decision) -> bool,
    ) -> Result<Decision, Failure> {
        let answer = self.read("/v1/decisions").await?;
        let all = answer["decisions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found = all.iter().map(decision).find(wanted);
        found.explain(format!("{} has no record of the decision {what}", self.service))
    }

    /// Serials of the certificates that `peer` proved itself with on the connections open now.
    pub(crate) async fn peer_serials(&self, peer: &str) -> Result<Vec<String>, Failure> {
        let answer = self.read("/v1/connections").await?;
        let all = answer["connections"].as_array().map(Vec::as_slice).unwrap_or_default();
        let of_peer = all
            .iter()
            .filter(|connection| connection["peer"] == peer && connection["direction"] == "inbound");
        Ok(of_peer
            .map(|connection| serial(&text(&connection["serial"])))
            .filter(|serial| !serial.is_empty())
            .collect())
    }

    async fn read(&self, path: &str) -> Result<Value, Failure> {
        let reply =
            self.client.get(path, &[]).await.explain(format!("admin socket of {}, {path}", self.service))?;
        ensure!(reply.status.is_success(), "admin socket of {}: {path} says {}", self.service, reply.status);
        serde_json::from_slice(&reply.body)
            .explain(format!("admin socket of {}: {path} is not JSON", self.service))
    }
}

/// A serial number in the one form in which serials are compared here.
pub(crate) fn serial(text: &str) -> String {
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    digits.trim_start_matches('0').to_ascii_lowercase()
}

fn mistake(entry: &Value) -> Mistake {
    Mistake {
        file: text(&entry["file"]),
        line: entry["line"].as_u64().unwrap_or(0),
        column: entry["column"].as_u64().unwrap_or(0),
        message: text(&entry["message"]),
    }
}

fn decision(entry: &Value) -> Decision {
    Decision {
        id: text(&entry["id"]),
        effect: text(&entry["effect"]),
        rule: text(&entry["rule"]),
        reason: text(&entry["reason"]),
        direction: text(&entry["direction"]),
        peer: text(&entry["peer"]),
        method: text(&entry["method"]),
        path: text(&entry["path"]),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn instant(value: &Value) -> Option<SystemTime> {
    match value {
        Value::String(text) => OffsetDateTime::parse(text, &Rfc3339).ok().map(SystemTime::from),
        _ => None,
    }
}

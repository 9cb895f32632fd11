//! The page of what lives now.

use std::collections::HashMap;

use postern_policy::LimitCounts;
use postern_svid::SpiffeId;
use serde_json::{Value, json};

use super::{log, rfc3339, status};
use crate::connections::Entry;
use crate::sidecar::Sidecar;

/// Connections, each with its streams.
pub(super) fn connections(sidecar: &Sidecar) -> Value {
    let streams = sidecar.registry.streams();
    // Once, not for each connection: there may be 10,000 of either.
    let mut by_connection: HashMap<u64, Vec<&Entry>> = HashMap::new();
    for entry in &streams {
        by_connection.entry(entry.connection.id).or_default().push(entry);
    }
    let connections: Vec<Value> = sidecar
        .registry
        .connections()
        .iter()
        .map(|connection| {
            let of_this = by_connection.get(&connection.id).into_iter().flatten();
            json!({
                "id": connection.id,
                "direction": connection.direction.label(),
                "peer": connection.peer.identity.as_ref().map(SpiffeId::as_str),
                "address": connection.peer.address,
                "serial": connection.peer.serial,
                "notAfter": connection.peer.not_after.map(rfc3339),
                "since": rfc3339(connection.since),
                "streams": of_this.map(|entry| stream(entry)).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({ "connections": connections })
}

/// The rate limits in force, and what they have counted.
pub(super) fn limits(sidecar: &Sidecar) -> Value {
    let snapshot = sidecar.snapshots.load();
    let limits = snapshot.policy.iter().flat_map(|generation| generation.limits());
    let limits: Vec<Value> = limits
        .map(|limit| {
            let LimitCounts { admitted, refused, shadow_refused, keys } = limit.counts();
            json!({
                "limit": limit.name().to_string(),
                "enforcement": limit.name().enforcement,
                "place": limit.name().place,
                "rate": limit.rate(),
                "burst": limit.burst(),
                "key": limit.key(),
                "keys": keys,
                "maxKeys": limit.max_keys(),
                "admitted": admitted,
                "refused": refused,
                "shadowRefused": shadow_refused,
            })
        })
        .collect();
    json!({ "limits": limits })
}

fn stream(entry: &Entry) -> Value {
    let (method, path) = entry.facts.method_and_path();
    json!({
        "destination": entry.facts.destination,
        "port": entry.facts.port,
        "method": method,
        "path": log::path(path),
        "status": status(entry.status()),
        "seconds": entry.since.elapsed().as_secs_f64(),
        "responseBytes": entry.response_bytes(),
    })
}

//! The pages that only show: configuration, identity, documents, decisions, issuers.

use postern_agent::{Attestation, Trust};
use postern_policy::{Effect, RuleId, UpgradeName};
use postern_svid::SpiffeId;
use serde_json::{Value, json};

use super::{rfc3339, status};
use crate::config::{LogFormat, Probe};
use crate::decisions::Decision;
use crate::sidecar::Sidecar;

pub(super) fn version() -> Value {
    json!({ "name": "postern-proxy", "version": env!("CARGO_PKG_VERSION"), "transport": "postern/1" })
}

pub(super) fn config(sidecar: &Sidecar) -> Value {
    let config = &sidecar.config;
    let ports: Vec<Value> = config
        .workload
        .ports
        .iter()
        .map(|(port, protocol)| {
            let upgrades = config.workload.upgrades.get(port).into_iter().flatten();
            let upgrades: Vec<&str> = upgrades.map(UpgradeName::as_str).collect();
            json!({ "port": port, "protocol": protocol.as_str(), "upgrades": upgrades })
        })
        .collect();
    let trust = match &config.trust {
        Trust::Bundle(path) => json!({ "trustBundle": path }),
        Trust::RootSha256(digest) => json!({ "rootSha256": hex(digest) }),
    };
    // Where the token is, never what it says.
    let (proof, place) = match &config.attestation {
        Attestation::JoinToken(path) => ("joinToken", json!(path)),
        Attestation::JoinTokenDescriptor(descriptor) => ("joinToken", json!({ "descriptor": descriptor })),
        Attestation::ServiceAccountToken(path) => ("serviceAccountToken", json!(path)),
        Attestation::OidcToken(path) => ("oidcToken", json!(path)),
        Attestation::Process => ("peerProcess", json!({})),
        Attestation::X509Pop { certificate, key } => {
            ("x509pop", json!({ "certificate": certificate, "key": key }))
        }
    };
    let format = match config.log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    json!({
        "identity": config.identity.as_str(),
        "stateDir": config.state_dir,
        "controlPlane": {
            "address": config.control_plane,
            "replicas": config.control_plane_replicas,
            "spiffeId": config.control_plane_id.as_str(),
            "trust": trust,
            proof: place,
        },
        "workload": { "address": config.workload.address, "ports": ports, "labels": config.workload.labels },
        "inbound": { "address": config.inbound },
        "outbound": { "address": config.outbound },
        "capture": config.capture.as_ref().map(|capture| {
            json!({ "addresses": capture.addresses, "mark": capture.mark, "lock": capture.lock })
        }),
        "health": { "address": config.health },
        "probes": config.probes.iter().map(Probe::place).collect::<Vec<_>>(),
        "admin": { "socket": config.admin_socket, "address": config.admin_port },
        "workloadApi": config.workload_api.as_ref().map(|api| {
            json!({
                "socket": api.socket, "mode": format!("{:04o}", api.mode),
                "allow": { "uids": api.uids, "gids": api.gids },
            })
        }),
        "documents": config.documents,
        "rootNamespace": config.root_namespace,
        "workers": config.workers,
        "test": config.test,
        "log": { "level": config.log.level, "format": format },
        "decisionLog": config.decision_log.as_ref().map(|log| {
            json!({
                "path": log.path, "stdout": log.path.is_none(),
                "sample": { "allow": log.allow, "deny": log.deny },
                "maxBytesPerSecond": log.max_bytes_per_second,
                "rotate": { "bytes": log.rotate_bytes, "keep": log.rotate_keep },
                "showHeaders": log.show_headers,
            })
        }),
        "limits": config.limits.shown(),
    })
}

pub(super) fn identity(sidecar: &Sidecar) -> Value {
    let agent = sidecar.agent.lock().as_ref().map(postern_agent::Observer::status);
    let control_plane = agent.map_or(Value::Null, |status| {
        json!({
            "connected": status.connected,
            "lastError": status.last_error.or(status.last_stream_error),
            "nextRenewal": status.next_renewal.map(rfc3339),
            "lastSuccess": status.last_success.map(rfc3339),
            "issued": status.issued,
            "failures": status.failures,
            "clockSkewMs": status.clock_skew_ms,
        })
    });
    let workload_api = sidecar.config.workload_api.as_ref().map(|_| {
        let counts = sidecar.metrics.workload_api.counts();
        json!({
            "connections": counts.connections(),
            "streams": counts.streams(),
            "answered": counts.with_result("ok"),
            "refused": counts.with_result("permission_denied"),
        })
    });
    let snapshot = sidecar.snapshots.load();
    let Some(own) = &snapshot.identity else {
        return json!({
            "id": sidecar.config.identity.as_str(), "serial": null, "controlPlane": control_plane,
            "workloadApi": workload_api,
        });
    };
    let svid = &own.identity.svid;
    let trust_domain = svid.id().trust_domain();
    let bundle = own.identity.bundles.of_trust_domain(&trust_domain).map(|bundle| {
        json!({ "trustDomain": trust_domain.as_str(), "sequence": bundle.sequence(), "roots": bundle.roots().len() })
    });
    let others = own.identity.bundles.iter().filter(|bundle| *bundle.trust_domain() != trust_domain);
    let federated: Vec<Value> = others
        .map(|bundle| {
            let (name, roots) = (bundle.trust_domain().as_str(), bundle.roots().len());
            json!({ "trustDomain": name, "sequence": bundle.sequence(), "roots": roots })
        })
        .collect();
    json!({
        "id": svid.id().as_str(),
        "serial": hex(svid.serial()),
        "issuerKeyId": hex(svid.issuer_key_id()),
        "notBefore": rfc3339(svid.not_before()),
        "notAfter": rfc3339(svid.not_after()),
        "generation": own.identity.generation,
        "bundle": bundle,
        "federated": federated,
        "controlPlane": control_plane,
        "workloadApi": workload_api,
    })
}

pub(super) fn policy(sidecar: &Sidecar) -> Value {
    let snapshot = sidecar.snapshots.load();
    let history = sidecar.history.lock();
    let refused = history.refused.as_ref().map(|refused| {
        json!({
            "at": rfc3339(refused.at),
            "digest": refused.digest,
            "text": refused.diagnostics.to_string(),
            "diagnostics": refused.diagnostics.iter().collect::<Vec<_>>(),
        })
    });
    let remembered: Vec<Value> = history
        .remembered()
        .map(|one| {
            let (digest, loaded_at) = (&one.digest, rfc3339(one.loaded_at));
            json!({ "generation": one.number, "digest": digest, "loadedAt": loaded_at, "source": one.origin.label() })
        })
        .collect();
    let newest = history.remembered().next();
    json!({
        "generation": snapshot.policy.as_ref().map(|generation| generation.number()),
        "digest": newest.map(|one| one.digest.as_str()),
        "loadedAt": newest.map(|one| rfc3339(one.loaded_at)),
        "documents": snapshot.policy.as_ref().map(|generation| generation.documents()),
        "warnings": snapshot.policy.as_ref().map(|generation| generation.warnings().iter().collect::<Vec<_>>()),
        "source": history.origin.map(crate::documents::Origin::label),
        "storedDigest": history.stored,
        "unstored": history.unstored,
        "storeError": history.store_error,
        "lastError": refused,
        "pinned": history.pinned.as_ref().map(|pin| {
            json!({ "to": pin.to, "since": rfc3339(pin.since), "waitingDigest": pin.waiting })
        }),
        "stale": snapshot.is_stale,
        "confirmedAt": history.confirmed.map(|confirmed| rfc3339(confirmed.wall)),
        "open": sidecar.glass.open(),
        "opened": history.opened,
        "kept": history.kept().collect::<Vec<_>>(),
        "history": remembered,
    })
}

pub(super) fn services(sidecar: &Sidecar) -> Value {
    let snapshot = sidecar.snapshots.load();
    let services: Vec<Value> = snapshot
        .policy
        .iter()
        .flat_map(|generation| generation.services().iter())
        .filter_map(|service| serde_json::to_value(service).ok())
        .collect();
    json!({ "services": services })
}

pub(super) fn decisions(sidecar: &Sidecar) -> Value {
    let decisions: Vec<Value> = sidecar.decisions.recent().iter().map(|one| decision(sidecar, one)).collect();
    json!({ "decisions": decisions })
}

pub(super) fn decision(sidecar: &Sidecar, decision: &Decision) -> Value {
    let subject = &decision.subject;
    let (method, path) = subject.method_and_path();
    // A rule's name is looked up in its own generation: numbers mean nothing in another.
    let name = |rule: Option<RuleId>| {
        let history = sidecar.history.lock();
        Some(history.generation(decision.id.generation)?.rule(rule?).to_string())
    };
    let verdict = decision.verdict;
    let rule = decision.rule.clone().or_else(|| name(verdict?.rule));
    let shadow = verdict.and_then(|verdict| verdict.shadow).map(|would| {
        let effect = if would.effect == Effect::Allow { "allow" } else { "deny" };
        json!({ "effect": effect, "rule": name(would.rule) })
    });
    let audit = name(verdict.and_then(|verdict| verdict.audit));
    json!({
        "id": decision.id.to_string(),
        "at": rfc3339(decision.at),
        "effect": if decision.is_allowed() { "allow" } else { "deny" },
        "reason": decision.reason(),
        "tokenError": decision.without.and_then(|without| without.token),
        "rule": rule,
        "limit": decision.limit,
        "shadow": shadow,
        "audit": audit,
        "generation": decision.id.generation,
        "direction": subject.direction.label(),
        "peer": subject.peer.as_ref().map(SpiffeId::as_str),
        "address": subject.address,
        "destination": subject.destination,
        "host": subject.host,
        "port": subject.port,
        "method": method,
        "path": path,
        "status": status(subject.status()),
    })
}

/// Who issues tokens, and what is known of their keys. No token and no claim is here.
pub(super) fn jwt(sidecar: &Sidecar) -> Value {
    let snapshot = sidecar.snapshots.load();
    let generation = snapshot.policy.as_deref();
    let issuers = generation.map(|generation| &*generation.defaults().jwt.issuers).unwrap_or_default();
    let issuers: Vec<Value> = issuers
        .iter()
        .map(|issuer| {
            json!({
                "issuer": issuer.name,
                "audiences": issuer.audiences,
                "algorithms": issuer.algorithms,
                "header": issuer.header.name,
                "forward": issuer.forward,
                "keys": sidecar.keyrings.state(&issuer.keys, sidecar.clock.wall()),
            })
        })
        .collect();
    let asked = generation.is_some_and(postern_policy::Generation::asks_tokens);
    json!({ "asked": asked, "issuers": issuers })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

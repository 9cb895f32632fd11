//! How what is shared is written: JSON, times in milliseconds since 1970, bytes in base64.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use postern_svid::{Revoked, SpiffeId};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::document::{Document, Held};
use crate::store::{Authority, JwtKey, Kind, Reason, Revocation, State};

/// Changes when an older program would misread it.
const FORMAT: u32 = 1;

/// Bytes as base64.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        BASE64.decode(text.as_bytes()).map(Self).map_err(|_| D::Error::custom("not base64"))
    }
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    format: u32,
    trust_domain: String,
    sequence: u64,
    renew_before_ms: Option<u64>,
    authorities: Vec<WireAuthority>,
    revocations: Vec<WireRevocation>,
    jwt_keys: Vec<WireJwtKey>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct WireAuthority {
    kind: String,
    state: String,
    label: String,
    key_id: Bytes,
    certificate: Bytes,
    not_before_ms: u64,
    not_after_ms: u64,
    since_ms: u64,
    sequence: u64,
    replica: Option<String>,
    reason: String,
    tainted_ms: Option<u64>,
    tainted_for: Option<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct WireRevocation {
    kind: String,
    value: Bytes,
    reason: String,
    at_ms: u64,
    ends_ms: Option<u64>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct WireJwtKey {
    label: String,
    key_id: String,
    point: Bytes,
    state: String,
    made_ms: u64,
    since_ms: u64,
}

pub(super) fn encode(document: &Document, trust_domain: &str) -> Vec<u8> {
    let authorities = document.authorities.iter().map(|Held { row, reason, tainted_for }| WireAuthority {
        kind: row.kind.name().to_owned(),
        state: row.state.name().to_owned(),
        label: row.label.clone(),
        key_id: Bytes(row.key_id.clone()),
        certificate: Bytes(row.certificate.clone()),
        not_before_ms: ms(row.not_before),
        not_after_ms: ms(row.not_after),
        since_ms: ms(row.since),
        sequence: row.sequence,
        replica: row.replica.clone(),
        reason: reason.clone(),
        tainted_ms: row.tainted.map(ms),
        tainted_for: tainted_for.as_ref().map(|reason| reason.as_str().to_owned()),
    });
    let jwt_keys = document.jwt_keys.iter().map(|key| WireJwtKey {
        label: key.label.clone(),
        key_id: key.key_id.clone(),
        point: Bytes(key.point.clone()),
        state: key.state.name().to_owned(),
        made_ms: ms(key.made),
        since_ms: ms(key.since),
    });
    let wire = Wire {
        format: FORMAT,
        trust_domain: trust_domain.to_owned(),
        sequence: document.sequence,
        renew_before_ms: document.renew_before.map(ms),
        authorities: authorities.collect(),
        revocations: document.revocations.iter().map(WireRevocation::from).collect(),
        jwt_keys: jwt_keys.collect(),
    };
    // Maps with string keys and numbers: serde_json cannot fail on them.
    serde_json::to_vec(&wire).unwrap_or_default()
}

pub(super) fn decode(value: &[u8], trust_domain: &str) -> Result<Document, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        format: u32,
        trust_domain: String,
    }
    let Head { format, trust_domain: found } =
        serde_json::from_slice(value).map_err(|error| error.to_string())?;
    if format != FORMAT {
        return Err(format!(
            "written in format {format}; this program knows {FORMAT}: run the version that wrote it"
        ));
    }
    if found != trust_domain {
        return Err(format!("it is the trust domain {found:?}'s, not {trust_domain}'s: name another prefix"));
    }
    let wire: Wire = serde_json::from_slice(value).map_err(|error| error.to_string())?;
    Ok(Document {
        sequence: wire.sequence,
        renew_before: wire.renew_before_ms.map(at),
        authorities: wire.authorities.into_iter().map(Held::try_from).collect::<Result<_, _>>()?,
        revocations: wire.revocations.into_iter().map(Revocation::try_from).collect::<Result<_, _>>()?,
        jwt_keys: wire.jwt_keys.into_iter().map(JwtKey::try_from).collect::<Result<_, _>>()?,
    })
}

impl TryFrom<WireAuthority> for Held {
    type Error = String;

    fn try_from(wire: WireAuthority) -> Result<Self, String> {
        let kind = match wire.kind.as_str() {
            "root" => Kind::Root,
            "issuing" => Kind::Issuing,
            other => return Err(format!("a CA of the kind {other:?}")),
        };
        if (kind == Kind::Issuing) != wire.replica.is_some() {
            return Err(format!("{}: an issuing CA has a replica, and no other CA has", wire.label));
        }
        // It becomes the name of a file.
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        if wire.label.is_empty() || wire.label.len() > 64 || !wire.label.bytes().all(plain) {
            return Err(format!("{:?} is no label of a CA", wire.label));
        }
        let row = Authority {
            kind,
            state: state(&wire.state)?,
            label: wire.label,
            key_id: wire.key_id.0,
            certificate: wire.certificate.0,
            not_before: at(wire.not_before_ms),
            not_after: at(wire.not_after_ms),
            since: at(wire.since_ms),
            sequence: wire.sequence,
            tainted: wire.tainted_ms.map(at),
            replica: wire.replica,
            // Replicas share no offline root.
            is_offline: false,
        };
        let tainted_for = wire.tainted_for.map(|text| reason(&text)).transpose()?;
        // It goes into the ledger, whose texts are printable.
        let reason = reason(&wire.reason)?.as_str().to_owned();
        Ok(Self { row, reason, tainted_for })
    }
}

impl From<&Revocation> for WireRevocation {
    fn from(one: &Revocation) -> Self {
        let (kind, value) = match &one.entry {
            Revoked::Authority(key_id) => ("authority", key_id.clone()),
            Revoked::Key(digest) => ("key", digest.to_vec()),
            Revoked::Serial(serial) => ("serial", serial.clone()),
            Revoked::Id(id) => ("id", id.as_str().as_bytes().to_vec()),
            // Whoever reads it refuses it: an entry that is not understood is not dropped in silence.
            _ => ("unknown", Vec::new()),
        };
        Self {
            kind: kind.to_owned(),
            value: Bytes(value),
            reason: one.reason.as_str().to_owned(),
            at_ms: ms(one.at),
            ends_ms: one.ends.map(ms),
        }
    }
}

impl TryFrom<WireRevocation> for Revocation {
    type Error = String;

    fn try_from(wire: WireRevocation) -> Result<Self, String> {
        let entry = entry(&wire.kind, wire.value.0)?;
        Ok(Self { entry, reason: reason(&wire.reason)?, at: at(wire.at_ms), ends: wire.ends_ms.map(at) })
    }
}

/// Whom an entry names.
pub(crate) fn entry(kind: &str, value: Vec<u8>) -> Result<Revoked, String> {
    let unfit = || format!("an entry of the lists is no {kind}");
    match kind {
        "authority" if (1..=64).contains(&value.len()) => Ok(Revoked::Authority(value)),
        "key" => value.try_into().map(Revoked::Key).map_err(|_| unfit()),
        "serial" if (1..=20).contains(&value.len()) => Ok(Revoked::Serial(value)),
        "id" => {
            let text = std::str::from_utf8(&value).map_err(|_| unfit())?;
            SpiffeId::parse(text).map(Revoked::Id).map_err(|_| unfit())
        }
        _ => Err(unfit()),
    }
}

impl TryFrom<WireJwtKey> for JwtKey {
    type Error = String;

    fn try_from(wire: WireJwtKey) -> Result<Self, String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        for name in [&wire.label, &wire.key_id] {
            if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
                return Err(format!("{name:?} is no name of a JWT key"));
            }
        }
        if wire.point.0.len() != 65 {
            return Err(format!("the JWT key {} is no point on P-256", wire.label));
        }
        Ok(Self {
            label: wire.label,
            key_id: wire.key_id,
            point: wire.point.0,
            state: state(&wire.state)?,
            made: at(wire.made_ms),
            since: at(wire.since_ms),
        })
    }
}

fn state(text: &str) -> Result<State, String> {
    State::ALL.into_iter().find(|one| one.name() == text).ok_or_else(|| format!("a state {text:?}"))
}

fn reason(text: &str) -> Result<Reason, String> {
    // What a program writes may be longer than what a person may say.
    let text: String = text.chars().take(200).collect();
    Reason::parse(&text).map_err(|error| error.to_string())
}

pub(crate) fn ms(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn at(ms: u64) -> SystemTime {
    // The year 9999: no larger number can overflow a sum with it.
    SystemTime::UNIX_EPOCH + Duration::from_millis(ms.min(253_402_300_799_999))
}

/// As it comes back after it was written.
pub(super) fn whole_ms(time: SystemTime) -> SystemTime {
    at(ms(time))
}

//! The trust bundle on its way to the sidecars, and who has acknowledged which version of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use postern_svid::{Bundle, PeerSvid, Revocations, Revoked, SpiffeId, TrustDomain};
use rustls_pki_types::CertificateDer;

use crate::authority::AuthorityError;
use crate::issue::MAX_TTL;
use crate::lineage::LineageId;
use crate::proto;
use crate::store::{Kind, Store};

/// How often a sidecar without a stream should ask again.
pub const REFRESH_HINT: Duration = Duration::from_secs(300);

/// Sidecars that are remembered. Each needed a certificate first, so strangers cannot fill the ledger.
const MAX_HOLDERS: usize = 100_000;
/// How long a sidecar that went silent is still shown after its certificate ended.
const KEEP: Duration = Duration::from_secs(3_600);

/// The bundle as it goes over the wire.
pub fn to_proto(bundle: &Bundle) -> proto::Bundle {
    proto::Bundle {
        trust_domain: bundle.trust_domain().as_str().to_owned(),
        sequence: bundle.sequence(),
        root_der: bundle.roots().iter().map(|root| root.to_vec()).collect(),
        refresh_hint_seconds: u32::try_from(REFRESH_HINT.as_secs()).unwrap_or(u32::MAX),
        revocations: lists(bundle.revocations()),
        jwt_keys: jwks(bundle),
    }
}

/// Nothing rather than an empty set.
fn jwks(bundle: &Bundle) -> Vec<u8> {
    let keys = bundle.jwt_keys();
    if keys.is_empty() { Vec::new() } else { keys.to_jwks().into_bytes() }
}

fn lists(revocations: &Revocations) -> Option<proto::Revocations> {
    if revocations.is_empty() {
        return None;
    }
    let mut lists = proto::Revocations::default();
    for entry in revocations.iter() {
        match entry {
            Revoked::Authority(key_id) => lists.tainted_key_id.push(key_id.clone()),
            Revoked::Key(digest) => lists.key_sha256.push(digest.to_vec()),
            Revoked::Serial(serial) => lists.denied_serial.push(serial.clone()),
            Revoked::Id(id) => lists.denied_id.push(id.as_str().to_owned()),
            // One that is added to the verifier must be added here: left out, it would be in force nowhere.
            other => debug_assert!(false, "{other} has no place in the protocol"),
        }
    }
    Some(lists)
}

/// The trust bundle as the store has it, whether a control plane runs on it or not.
pub fn stored(store: &dyn Store, td: &TrustDomain) -> Result<Bundle, AuthorityError> {
    let trust = store.trust()?;
    let roots = trust.authorities.into_iter().filter(|row| row.kind == Kind::Root && row.state.is_trusted());
    let roots = roots.map(|row| CertificateDer::from(row.certificate)).collect();
    Ok(Bundle::new(td.clone(), trust.sequence, roots)?.with_jwt_keys(trust.jwt_keys))
}

/// What one sidecar holds, as it said itself and its connection proved.
#[derive(Clone, Debug)]
pub struct Holder {
    /// Its identity, proven by the connection.
    pub id: SpiffeId,
    /// Its lineage.
    pub lineage: LineageId,
    /// The version of the bundle that it has acknowledged.
    pub bundle_sequence: u64,
    /// The certificate that it says it serves.
    pub serial: Vec<u8>,
    /// End of that certificate.
    pub not_after: SystemTime,
    /// Key identifier of the CA that signed it.
    pub issuer: Vec<u8>,
    /// When it last said so.
    pub reported: SystemTime,
    /// Streams of it that are open now.
    pub streams: u32,
}

/// Who holds what. Kept in memory: sidecars report again when they reconnect.
#[derive(Default)]
pub struct Acknowledgements {
    holders: Mutex<BTreeMap<LineageId, Holder>>,
    /// The highest version that went out.
    published: AtomicU64,
}

impl Acknowledgements {
    /// A stream of `peer` opened.
    pub fn opened(&self, lineage: LineageId, peer: &PeerSvid, now: SystemTime) {
        let mut holders = self.holders.lock();
        make_room(&mut holders, now);
        let holder = holders.entry(lineage).or_insert_with(|| Holder {
            id: peer.id().clone(),
            lineage,
            bundle_sequence: 0,
            serial: peer.serial().to_vec(),
            not_after: peer.not_after(),
            issuer: peer.issuer_key_id().to_vec(),
            reported: now,
            streams: 0,
        });
        holder.streams = holder.streams.saturating_add(1);
        holder.reported = now;
    }

    /// A stream of it closed.
    pub fn closed(&self, lineage: LineageId) {
        if let Some(holder) = self.holders.lock().get_mut(&lineage) {
            holder.streams = holder.streams.saturating_sub(1);
        }
    }

    /// A sidecar reported. Only what it says about its own identity counts.
    pub fn report(&self, lineage: LineageId, report: &proto::Report, published: u64, now: SystemTime) {
        self.published.fetch_max(published, Ordering::Relaxed);
        let mut holders = self.holders.lock();
        let Some(holder) = holders.get_mut(&lineage) else { return };
        holder.bundle_sequence = report.bundle_sequence;
        holder.reported = now;
        let own = report.held.iter().filter(|held| held.spiffe_id == holder.id.as_str());
        if let Some(held) = own.max_by_key(|held| held.not_after_unix_ms)
            && held.serial.len() <= 20
            && held.issuer_key_id.len() <= 64
        {
            holder.serial.clone_from(&held.serial);
            holder.issuer.clone_from(&held.issuer_key_id);
            let ms = u64::try_from(held.not_after_unix_ms).unwrap_or(0);
            let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms));
            // Nothing lives longer than that; a claim to would keep a dead sidecar in the list for ever.
            let most = now + MAX_TTL;
            holder.not_after = at.map_or(most, |at| at.min(most));
        }
    }

    /// All sidecars that are connected or hold a certificate that has not long ended.
    pub fn holders(&self, now: SystemTime) -> Vec<Holder> {
        let mut holders = self.holders.lock();
        holders.retain(|_, holder| !is_forgotten(holder, now));
        let counted = |holder: &Holder| Holder { bundle_sequence: self.counted(holder), ..holder.clone() };
        holders.values().map(counted).collect()
    }

    /// What an acknowledgement counts for. A version that was not published here is one of another life of this CA: whoever has it
    /// refuses what comes from here, so it has acknowledged nothing.
    fn counted(&self, holder: &Holder) -> u64 {
        let known = holder.bundle_sequence <= self.published.load(Ordering::Relaxed);
        if known { holder.bundle_sequence } else { 0 }
    }

    /// How many sidecars live and are behind `sequence`, which is published, without those that are denied: they cannot catch up.
    pub fn behind(&self, sequence: u64, now: SystemTime, is_denied: impl Fn(&Holder) -> bool) -> usize {
        self.published.fetch_max(sequence, Ordering::Relaxed);
        let is_behind = |h: &&Holder| self.counted(h) < sequence && (h.streams > 0 || h.not_after >= now);
        let behind: Vec<_> = self.holders.lock().values().filter(is_behind).cloned().collect();
        behind.iter().filter(|holder| !is_denied(holder)).count()
    }
}

fn is_forgotten(holder: &Holder, now: SystemTime) -> bool {
    holder.streams == 0 && holder.not_after.checked_add(KEEP).is_none_or(|end| end < now)
}

fn make_room(holders: &mut BTreeMap<LineageId, Holder>, now: SystemTime) {
    if holders.len() < MAX_HOLDERS {
        return;
    }
    holders.retain(|_, holder| !is_forgotten(holder, now));
    while holders.len() >= MAX_HOLDERS {
        let silent =
            holders.values().filter(|h| h.streams == 0).min_by_key(|h| h.reported).map(|h| h.lineage);
        let Some(oldest) = silent.or_else(|| holders.keys().next().copied()) else { return };
        holders.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HOUR, Home, id, key, peer, start};

    #[test]
    fn what_a_sidecar_may_say() {
        let home = Home::new();
        let ca = home.ca();
        let svid = peer(&ca.join(&id("orders"), &ca.token(&id("orders")), &key()).unwrap());
        let (mine, other) = (LineageId::random().unwrap(), LineageId::random().unwrap());
        let ledger = Acknowledgements::default();
        let held = |name: &str, ms| proto::Held {
            spiffe_id: id(name).as_str().to_owned(),
            serial: vec![5; 16],
            not_after_unix_ms: ms,
            issuer_key_id: vec![6; 20],
        };
        let report = |bundle_sequence, held| proto::Report { bundle_sequence, held };
        ledger.report(other, &report(1, Vec::new()), 1, start());
        assert!(ledger.holders(start()).is_empty(), "no stream, no entry");

        ledger.opened(mine, &svid, start());
        assert_eq!(ledger.behind(1, start(), |_| false), 1);
        // About others nothing, about its own certificate nothing impossible; and a version that nobody published is none.
        ledger.report(mine, &report(99, vec![held("store", 1), held("orders", i64::MAX)]), 1, start());
        let one = &ledger.holders(start())[0];
        assert_eq!((one.bundle_sequence, one.serial.as_slice()), (0, &[5; 16][..]));
        assert_eq!(one.not_after, start() + MAX_TTL);
        assert_eq!(ledger.behind(1, start(), |_| false), 1);
        // It was here before we had heard of it ourselves.
        ledger.report(mine, &report(2, Vec::new()), 1, start());
        assert_eq!((ledger.behind(1, start(), |_| false), ledger.behind(2, start(), |_| false)), (1, 0));
        ledger.report(mine, &report(1, Vec::new()), 2, start());
        assert_eq!((ledger.behind(1, start(), |_| false), ledger.behind(2, start(), |_| false)), (0, 1));
        assert_eq!(
            ledger.behind(2, start(), |holder| holder.id == id("orders")),
            0,
            "denied, it cannot catch up"
        );
        let long = proto::Held { serial: vec![7; 21], ..held("orders", 1) };
        ledger.report(mine, &report(1, vec![long]), 1, start());
        assert_eq!(ledger.holders(start())[0].serial, [5; 16]);

        // Gone, but shown until its certificate has been over for a while.
        ledger.closed(mine);
        let end = start() + MAX_TTL;
        assert_eq!(ledger.behind(2, end, |_| false), 1);
        assert_eq!(ledger.behind(2, end + HOUR / 2, |_| false), 0);
        assert_eq!(ledger.holders(end + HOUR / 2).len(), 1);
        assert!(ledger.holders(end + HOUR * 2).is_empty());
    }
}

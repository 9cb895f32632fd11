//! A certificate that another replica has issued: it is verified like any other, and this replica goes on with its lineage.
//!
//! What has to be known of that lineage, how it began and when, stands in the serial number: it is signed with the rest, and needs
//! neither the other replica nor a row in a store that all would have to ask.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use postern_svid::PeerSvid;

use crate::authority::Authority;
use crate::lineage::{Attestor, Lineage, LineageId};
use crate::profile::{ProfileError, Serial};
use crate::store::{Issued, Store};

/// Where in a serial number the telling part begins; what is before it is random, and enough of it.
const AT: usize = 11;
/// What its first half byte is.
const MARK: u8 = 0xa0;

/// A fresh serial number that tells how its lineage began.
pub(super) fn telling(attestor: Attestor, attested: SystemTime) -> Result<Serial, ProfileError> {
    let mut bytes = *Serial::random()?.as_bytes();
    let minutes = attested.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / 60;
    bytes[AT] = MARK | attestor.number();
    // The year 10136.
    bytes[AT + 1..].copy_from_slice(&u32::try_from(minutes).unwrap_or(u32::MAX).to_be_bytes());
    Ok(Serial::of(bytes))
}

/// What a serial number tells; nothing if an earlier version made it.
fn told(serial: &[u8]) -> Option<(Attestor, SystemTime)> {
    let [mark, a, b, c, d] = *serial.get(AT..)? else { return None };
    let attestor = Attestor::numbered(mark & 0x0f).filter(|_| mark & 0xf0 == MARK)?;
    let minutes = u32::from_be_bytes([a, b, c, d]);
    Some((attestor, SystemTime::UNIX_EPOCH + Duration::from_secs(60 * u64::from(minutes))))
}

/// The certificate and the lineage of a peer whose certificate another replica has issued; `None` if none has.
pub fn from_another_replica(
    authority: &Authority,
    store: &dyn Store,
    peer: &PeerSvid,
) -> Option<(Issued, Lineage)> {
    if store.replica().is_none()
        || peer.id().is_reserved()
        || !authority.is_another_replicas(peer.issuer_key_id())
    {
        return None;
    }
    // One that tells nothing is of the time before there were replicas: it renews, and its thirty days begin with it.
    let (attestor, attested) =
        told(peer.serial()).unwrap_or_else(|| (Attestor::JoinToken, peer.not_before()));
    // The same for everybody who presents this certificate: then two who do are found out.
    let name =
        digest(&SHA256, &[b"postern.dev/adopted/1".as_slice(), peer.issuer_key_id(), peer.serial()].concat());
    let mut lineage = [0; 16];
    lineage.copy_from_slice(&name.as_ref()[..16]);
    let issued = Issued {
        serial: peer.serial().to_vec(),
        id: peer.id().clone(),
        lineage: LineageId(lineage),
        issuer: peer.issuer_key_id().to_vec(),
        key: *peer.key(),
        issued: peer.not_before(),
        not_before: peer.not_before(),
        not_after: peer.not_after(),
        // Of the other replica's choosing, and not known here: it is never handed out again.
        renew_after: peer.not_before(),
        certificate: Vec::new(),
    };
    let lineage = Lineage {
        id: LineageId(lineage),
        spiffe_id: peer.id().clone(),
        attestor,
        attested,
        newest: issued.serial.clone(),
        parent: None,
        forked: None,
    };
    Some((issued, lineage))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::start;

    #[test]
    fn a_serial_number_tells_how_its_lineage_began() {
        for attestor in Attestor::ALL {
            let (one, two) = (telling(attestor, start()).unwrap(), telling(attestor, start()).unwrap());
            assert_ne!(one.as_bytes()[..AT], two.as_bytes()[..AT]);
            assert_eq!(told(one.as_bytes()), Some((attestor, start())));
        }
        let mut other = *telling(Attestor::Own, start()).unwrap().as_bytes();
        assert_eq!(told(&other[..15]), None);
        other[AT] = MARK | 0x0f;
        assert_eq!(told(&other), None, "an attestor of a later version");
        other[AT] = 0;
        assert_eq!(told(&other), None);
        assert_eq!(told(&[]), None);
    }
}

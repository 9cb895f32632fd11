//! SPIFFE ids from any text: what is accepted obeys the grammar, keeps its bytes and survives a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_svid::{SpiffeId, TrustDomain};

fuzz_target!(|text: &str| {
    if let Ok(td) = TrustDomain::parse(text) {
        assert_eq!(td.as_str(), text);
        assert_eq!(TrustDomain::parse(td.as_str()).as_ref(), Ok(&td));
        // A trust domain is no workload, whatever is put in front of it; its control plane is one, and reserved.
        assert!(SpiffeId::parse(text).is_err());
        assert!(SpiffeId::parse(&td.id()).is_err());
        assert!(td.control_plane().is_reserved());
        assert!(td.control_plane().is_member_of(&td));
    }
    let Ok(id) = SpiffeId::parse(text) else { return };
    assert_eq!(id.as_str(), text, "kept whole");
    assert_eq!(SpiffeId::parse(id.as_str()).as_ref(), Ok(&id));
    assert!(text.len() <= 2_048 && text.starts_with("spiffe://"));
    assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:".contains(&b)));

    // The two parts are the whole.
    let td = id.trust_domain();
    assert_eq!(format!("spiffe://{}{}", id.trust_domain_name(), id.path()), text);
    assert_eq!(TrustDomain::parse(id.trust_domain_name()).as_ref(), Ok(&td));
    assert!(id.is_member_of(&td) && id.trust_domain_name().len() <= 255);
    assert!(!id.trust_domain_name().bytes().any(|b| b.is_ascii_uppercase() || b == b':'));

    // No path can mean anything else to somebody who normalises it.
    assert!(id.path().starts_with('/') && !id.path().contains(':'));
    assert!(id.path().split('/').skip(1).all(|segment| !matches!(segment, "" | "." | "..")));
    if let Some((namespace, account)) = id.namespace_and_account() {
        assert_eq!(SpiffeId::service_account(&td, namespace, account).as_ref(), Ok(&id));
        assert!(!id.is_reserved());
    }
});

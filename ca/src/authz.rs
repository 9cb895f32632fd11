//! Who may be what: the id of a certificate comes from the proof, and the id asked for must be exactly that one.

use postern_svid::{SpiffeId, TrustDomain};

/// Checks that the proof, which attests `attested`, allows a certificate of `asked`.
pub fn grant<'a>(td: &TrustDomain, attested: &'a SpiffeId, asked: &SpiffeId) -> Result<&'a SpiffeId, Denied> {
    may_exist(td, attested)?;
    if attested != asked {
        return Err(Denied::Other);
    }
    Ok(attested)
}

/// Whether a workload may ever be `id` in `td`; tokens are made only for such ids.
pub fn may_exist(td: &TrustDomain, id: &SpiffeId) -> Result<(), Denied> {
    if !id.is_member_of(td) {
        return Err(Denied::TrustDomain { asked: id.trust_domain(), own: td.clone() });
    }
    // The mesh's own ids: whoever held one could hand out policy, or be the CA.
    if id.is_reserved() {
        return Err(Denied::Reserved);
    }
    Ok(())
}

/// Why an id is not granted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// The proof stands for another id.
    #[error("the proof stands for another id than the one asked for")]
    Other,
    /// Under `/postern/`.
    #[error("ids under /postern/ belong to the mesh itself and are granted to nobody")]
    Reserved,
    /// Of another trust domain.
    #[error("the id is of the trust domain {asked}, and this control plane's is {own}")]
    TrustDomain {
        /// The id's.
        asked: TrustDomain,
        /// This control plane's.
        own: TrustDomain,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_attested_id() {
        let td = TrustDomain::parse("td").unwrap();
        let id = |text| SpiffeId::parse(text).unwrap();
        let foreign =
            |name| Denied::TrustDomain { asked: TrustDomain::parse(name).unwrap(), own: td.clone() };
        let orders = id("spiffe://td/ns/shop/sa/orders");
        assert_eq!(grant(&td, &orders, &orders), Ok(&orders));
        for (attested, asked, denied) in [
            ("spiffe://td/a", "spiffe://td/b", Denied::Other),
            ("spiffe://td/a", "spiffe://td/a/b", Denied::Other),
            ("spiffe://other/a", "spiffe://other/a", foreign("other")),
            ("spiffe://td.example/a", "spiffe://td.example/a", foreign("td.example")),
            ("spiffe://td/postern", "spiffe://td/postern", Denied::Reserved),
            ("spiffe://td/postern/control", "spiffe://td/postern/control", Denied::Reserved),
            ("spiffe://td/a", "spiffe://td/postern/control", Denied::Other),
        ] {
            assert_eq!(grant(&td, &id(attested), &id(asked)), Err(denied), "{attested} {asked}");
        }
        assert_eq!(may_exist(&td, &id("spiffe://td/posterns/x")), Ok(()));
    }
}

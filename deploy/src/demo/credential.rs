//! What an intruder shows in the handshake: a certificate that is not its own, or not the mesh's.

use std::path::Path;
use std::time::Duration;

use postern_ca::csr;
use postern_ca::profile::{self, ProfileError, Serial, Signer, Validity};
use postern_svid::{Clock, SpiffeId, SystemClock};
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::demo::failure::{Explain, Failure};

/// Longer than any demo.
const LIFE: Duration = Duration::from_secs(3600);

/// A certificate chain, leaf first, and the leaf's key.
pub(crate) struct Credential {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Credential {
    /// What a sidecar keeps in its state directory, as a thief would read it.
    pub(crate) fn stolen_from(state_file: &Path) -> Result<Self, Failure> {
        let bytes = std::fs::read(state_file).explain(format!("cannot read {}", state_file.display()))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        let chain = chain.explain(format!("no certificates in {}", state_file.display()))?;
        let key =
            PrivateKeyDer::from_pem_slice(&bytes).explain(format!("no key in {}", state_file.display()))?;
        Ok(Self { chain, key })
    }

    /// A certificate for `id` from a CA that the mesh has never heard of. Made by the mesh's own profiles, so that nothing
    /// about it is wrong but who signed it.
    pub(crate) fn from_another_ca(id: &str) -> Result<Self, Failure> {
        let (credential, _root) = another_ca(id).explain("cannot make a certificate of another CA")?;
        Ok(credential)
    }
}

/// A whole second CA: a credential from it, and its root, which no peer ever sends.
fn another_ca(id: &str) -> Result<(Credential, CertificateDer<'static>), Box<dyn std::error::Error>> {
    let id: SpiffeId = id.parse()?;
    let td = id.trust_domain();
    let validity = Validity::from_now(SystemClock.wall(), LIFE);
    let ca = |algorithm| Ok::<_, ProfileError>((profile::ca_label()?, KeyPair::generate_for(algorithm)?));

    let (root_label, root_key) = ca(profile::ROOT_KEY)?;
    let root = profile::root(&td, &root_label, &root_key, validity)?;
    let signer = Signer::new(&root, root_key)?;
    let (issuing_label, issuing_key) = ca(profile::ISSUING_KEY)?;
    let issuing = profile::issuing(&td, &issuing_label, &issuing_key, &signer, validity)?;
    let signer = Signer::new(&issuing, issuing_key)?;

    let leaf_key = KeyPair::generate()?;
    let verified = csr::verify(&csr::own(&leaf_key)?, &id)?;
    let leaf = profile::leaf(&id, &verified, &signer, validity, Serial::random()?)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    Ok((Credential { chain: vec![leaf, issuing], key }, root))
}

#[cfg(test)]
mod tests {
    use postern_svid::{Bundle, Bundles, Role, VerifyError, verify};

    use super::*;
    use crate::demo::plan::{Service, TRUST_DOMAIN};

    #[test]
    fn nothing_is_wrong_with_another_cas_certificate_but_its_ca() {
        let id = Service::Orders.spiffe_id();
        let (credential, root) = another_ca(&id).expect("the profiles work");
        let (_, unrelated) = another_ca(&id).expect("the profiles work");
        let trusting = |root: &CertificateDer<'static>| {
            let td = TRUST_DOMAIN.parse().expect("a trust domain");
            Bundles::of(Bundle::new(td, 1, vec![root.clone()]).expect("a root"))
        };
        let check = |bundles: &Bundles| verify(&credential.chain, bundles, Role::Client, SystemClock.wall());
        let peer = check(&trusting(&root)).expect("its own root vouches for it");
        assert_eq!(peer.id().as_str(), id);
        let refused = check(&trusting(&unrelated)).expect_err("a root that signed nothing of it");
        assert!(matches!(refused, VerifyError::Untrusted(_)), "{refused}");
    }
}

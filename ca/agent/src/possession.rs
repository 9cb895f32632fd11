//! A certificate that somebody else's CA gave this machine, shown together with the proof that we hold its key.

use std::path::Path;

use postern_svid::Channel;
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::Signer;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{AttemptError, StartError};
use crate::files;
use crate::proto::{IssueRequest, X509Pop};

/// A chain is a leaf and what lies between it and a root.
const MAX_CHAIN: usize = 6;
/// What the control plane verifies.
const SCHEMES: [SignatureScheme; 4] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::ED25519,
];

/// A chain and its key, as they are in their files now.
#[derive(Debug)]
pub(crate) struct Possession {
    chain: Vec<Vec<u8>>,
    signer: Box<dyn Signer>,
}

impl Possession {
    /// Reads both.
    pub(crate) fn load(certificate: &Path, key: &Path) -> Result<Self, StartError> {
        let unfit = |path: &Path, problem: String| StartError::Machine { path: path.to_owned(), problem };
        let pem = files::read_public(certificate).map_err(|error| unfit(certificate, error.to_string()))?;
        let mut chain = Vec::new();
        for one in CertificateDer::pem_slice_iter(&pem).take(MAX_CHAIN) {
            chain.push(one.map_err(|error| unfit(certificate, error.to_string()))?.to_vec());
        }
        if chain.is_empty() {
            return Err(unfit(certificate, "it holds no certificate in PEM".to_owned()));
        }
        let pem = files::read_private(key)?.ok_or_else(|| unfit(key, "there is no key".to_owned()))?;
        let der = PrivateKeyDer::from_pem_slice(&pem)
            .map_err(|_| unfit(key, "it holds no private key in PEM".to_owned()))?;
        let key_of = any_supported_type(&der)
            .map_err(|_| unfit(key, "its kind is not RSA, P-256, P-384 or Ed25519".to_owned()))?;
        let signer = key_of.choose_scheme(&SCHEMES);
        let signer =
            signer.ok_or_else(|| unfit(key, "its kind is not RSA, P-256, P-384 or Ed25519".to_owned()))?;
        Ok(Self { chain, signer })
    }

    /// The proof for this request over this connection.
    pub(crate) fn prove(self, channel: &Channel, request: &IssueRequest) -> Result<X509Pop, AttemptError> {
        let message = channel.message(&request.csr_der, &request.spiffe_id);
        let signature = self.signer.sign(&message);
        let signature = signature
            .map_err(|error| AttemptError::Local(format!("the machine's key does not sign: {error}")))?;
        let scheme = u16::from(self.signer.scheme()).into();
        Ok(X509Pop { chain_der: self.chain, scheme, signature })
    }
}

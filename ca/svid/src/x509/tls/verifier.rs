//! rustls' two verifier traits, answered by [`verify`](super::super::verify::verify).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::aws_lc_rs as algorithms;

use crate::SpiffeId;
use crate::x509::Role;
use crate::x509::bundle::{Bundle, Bundles};
use crate::x509::error::VerifyError;
use crate::x509::signatures::SIGNATURES;
use crate::x509::verify::{PeerSvid, verify};

/// Signatures on handshakes: the three key types of an SVID. Each is made once, so none of them is remembered.
pub(super) const HANDSHAKE_SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: SIGNATURES,
    mapping: &[
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[algorithms::ECDSA_P256_SHA256]),
        (SignatureScheme::ECDSA_NISTP384_SHA384, &[algorithms::ECDSA_P384_SHA384]),
        (SignatureScheme::ED25519, &[algorithms::ED25519]),
    ],
};

/// What vouches for a server.
#[derive(Debug)]
pub(super) enum Roots {
    Bundles(Bundles),
    /// The root with this SHA-256, taken from the chain that the server sends.
    Pinned([u8; 32]),
}

/// The server's view of a client.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    bundles: Bundles,
    mandatory: bool,
}

impl ClientVerifier {
    pub(super) const fn new(bundles: Bundles, mandatory: bool) -> Self {
        Self { bundles, mandatory }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: the list would tell strangers the names of our roots, and mesh clients have one certificate anyway.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        chain(end_entity, intermediates, &self.bundles, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &HANDSHAKE_SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        HANDSHAKE_SIGNATURES.supported_schemes()
    }
}

/// The client's view of a server.
#[derive(Debug)]
pub(super) struct ServerVerifier {
    roots: Roots,
    expected: Vec<SpiffeId>,
}

impl ServerVerifier {
    pub(super) const fn new(roots: Roots, expected: Vec<SpiffeId>) -> Self {
        Self { roots, expected }
    }

    /// Being in the chain proves nothing by itself; the hash says that the operator meant this certificate.
    fn pinned(&self, pin: &[u8; 32], sent: &[CertificateDer<'_>]) -> Result<Bundles, VerifyError> {
        let root = sent.iter().find(|one| digest(&SHA256, one).as_ref() == pin).ok_or_else(|| {
            VerifyError::Untrusted("the chain does not contain the root with the pinned SHA-256".to_owned())
        })?;
        let td = self.expected.first().ok_or(VerifyError::NoSpiffeId)?.trust_domain();
        let bundle = Bundle::new(td, 0, vec![root.clone().into_owned()])
            .map_err(|error| VerifyError::Untrusted(error.to_string()))?;
        // An issuing CA's hash would pin a certificate of a few days.
        if !bundle.anchors().iter().all(|root| root.facts.is_self_issued()) {
            return Err(VerifyError::Untrusted(
                "the certificate with the pinned SHA-256 is no root".to_owned(),
            ));
        }
        Ok(Bundles::of(bundle))
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned;
        let bundles = match &self.roots {
            Roots::Bundles(bundles) => bundles,
            Roots::Pinned(pin) => {
                pinned = self.pinned(pin, intermediates).map_err(to_rustls)?;
                &pinned
            }
        };
        let peer = chain(end_entity, intermediates, bundles, Role::Server, now)?;
        if self.expected.contains(peer.id()) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(to_rustls(VerifyError::WrongPeer { actual: peer.id().clone(), expected: self.expected.clone() }))
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &HANDSHAKE_SIGNATURES)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        HANDSHAKE_SIGNATURES.supported_schemes()
    }
}

fn chain(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundles: &Bundles,
    role: Role,
    now: UnixTime,
) -> Result<PeerSvid, Error> {
    let mut chain = Vec::with_capacity(intermediates.len() + 1);
    chain.push(CertificateDer::from(end_entity.as_ref()));
    chain.extend(intermediates.iter().map(|one| CertificateDer::from(one.as_ref())));
    verify(&chain, bundles, role, UNIX_EPOCH + Duration::from_secs(now.as_secs())).map_err(to_rustls)
}

/// rustls derives the alert from the variant. The two kinds that an honest peer can act upon get their own alert;
/// everything else travels inside `Other` and is `certificate_unknown` on the wire.
fn to_rustls(error: VerifyError) -> Error {
    let unix =
        |time: SystemTime| UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default());
    Error::InvalidCertificate(match error {
        VerifyError::Expired { not_after, now, .. } => {
            CertificateError::ExpiredContext { time: unix(now), not_after: unix(not_after) }
        }
        VerifyError::NotYetValid { not_before, now, .. } => {
            CertificateError::NotValidYetContext { time: unix(now), not_before: unix(not_before) }
        }
        error => CertificateError::Other(OtherError(Arc::new(error))),
    })
}

/// Unreachable through our configurations, which know TLS 1.3 only; a refusal, should that ever change.
fn tls12() -> Error {
    PeerIncompatible::Tls12NotOffered.into()
}

//! Why a handshake failed, in one word or in many.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use crate::x509::error::VerifyError;

/// A constant for metrics: the reason of a [`VerifyError`] when our side refused the peer's certificate
/// (`expired`, `untrusted`, `unknown_trust_domain`, `wrong_peer`, …), else one of `no_certificate`, `tls_version`,
/// `tls_parameters`, `alpn`, `not_tls`, `bad_signature`, `protocol`, `refused_by_peer`, `peer_says_expired`,
/// `peer_demands_certificate`, `timeout`, `closed`, `other`.
pub fn refusal(error: &io::Error) -> &'static str {
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return tls(error);
    }
    match error.kind() {
        io::ErrorKind::TimedOut => "timeout",
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::NotConnected => "closed",
        _ => "other",
    }
}

/// The same for people: the whole text of a [`VerifyError`] if one is inside, where rustls would print its structure.
pub fn explain(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match tls {
        Some(Error::InvalidCertificate(CertificateError::Other(other))) => other.0.to_string(),
        Some(error) => error.to_string(),
        None => error.to_string(),
    }
}

fn tls(error: &Error) -> &'static str {
    match error {
        Error::NoCertificatesPresented => "no_certificate",
        Error::InvalidCertificate(error) => certificate(error),
        Error::PeerIncompatible(error) => incompatible(error),
        Error::NoApplicationProtocol => "alpn",
        Error::AlertReceived(alert) => alert_received(*alert),
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload
            | InvalidMessage::UnexpectedMessage(_),
        ) => "not_tls",
        Error::InvalidMessage(_)
        | Error::PeerMisbehaved(_)
        | Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerSentOversizedRecord
        | Error::DecryptError => "protocol",
        _ => "other",
    }
}

fn certificate(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not_yet_valid",
        CertificateError::UnknownIssuer => "untrusted",
        // From the handshake's own signature: the peer does not hold the key of its certificate.
        CertificateError::BadSignature
        | CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => "bad_signature",
        CertificateError::Other(other) => {
            other.0.downcast_ref::<VerifyError>().map_or("other", VerifyError::reason)
        }
        CertificateError::BadEncoding => "bad_certificate",
        _ => "other",
    }
}

const fn incompatible(error: &PeerIncompatible) -> &'static str {
    match error {
        PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::SupportedVersionsExtensionRequired
        | PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::Tls13RequiredForQuic => "tls_version",
        _ => "tls_parameters",
    }
}

const fn alert_received(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateExpired => "peer_says_expired",
        AlertDescription::CertificateRequired => "peer_demands_certificate",
        AlertDescription::ProtocolVersion => "tls_version",
        AlertDescription::NoApplicationProtocol => "alpn",
        AlertDescription::CloseNotify | AlertDescription::UserCanceled => "closed",
        _ => "refused_by_peer",
    }
}

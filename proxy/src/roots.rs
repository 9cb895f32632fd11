//! The authorities that servers outside of the mesh are trusted by. No peer of the mesh is.

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::AsyncReadExt as _;

/// A file of certificates larger than this is none. The largest of a platform has a quarter of it.
const MAX_ROOTS: usize = 2 * 1024 * 1024;
/// Where platforms keep the certificates of public authorities.
const PLATFORM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// The certificates of a file, or of the platform's.
pub(crate) async fn read(ca_file: Option<&str>) -> Result<RootCertStore, String> {
    let mut found = None;
    for path in ca_file.as_ref().map_or(&PLATFORM[..], std::slice::from_ref) {
        match bounded(path, MAX_ROOTS).await {
            Ok(text) => {
                found = Some((path, text));
                break;
            }
            Err(error) if ca_file.is_some() => return Err(format!("caFile {path}: {error}")),
            Err(_) => {}
        }
    }
    let Some((path, text)) = found else {
        return Err("this machine has no file of public authorities: name one with `caFile`".to_owned());
    };
    let mut store = RootCertStore::empty();
    // Platforms keep certificates that are of no use to anyone beside good ones.
    for certificate in CertificateDer::pem_slice_iter(&text).flatten() {
        let _ = store.add(certificate);
    }
    if store.is_empty() {
        return Err(format!("{path} holds no certificates (PEM)"));
    }
    Ok(store)
}

/// Reads a file that is no larger than `most`.
pub(crate) async fn bounded(path: &str, most: usize) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX);
    tokio::fs::File::open(path).await?.take(limit + 1).read_to_end(&mut text).await?;
    if text.len() > most {
        return Err(std::io::Error::other(format!("larger than {} KiB", most >> 10)));
    }
    Ok(text)
}

//! What survives the process: key and chain, the bundle, and the key of a request that is under way.
//!
//! Key and chain share one file, so that no crash can pair a key with another key's chain. The pending key is stored
//! before its request leaves: a join token is bound to the key of its first request, so whoever asks again after a crash
//! must ask with the same key.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postern_svid::{Bundle, Revocations, Revoked, SpiffeId, Svid, TrustDomain};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::error::StartError;
use crate::files;
use crate::key::Key;
use crate::renew;

const SVID: &str = "svid.pem";
const BUNDLE: &str = "bundle.pem";
const FEDERATION: &str = "federation.pb";
const PENDING: &str = "pending-key.pem";
const LOCK: &str = "lock";
const MAX_CHAIN: usize = 8;
/// What lines of revocations begin with.
const TAINTED: &str = "tainted-key-id: ";
const KEY: &str = "revoked-key-sha256: ";
const SERIAL: &str = "denied-serial: ";
const ID: &str = "denied-id: ";

/// The state directory, held for this process alone.
#[derive(Debug)]
pub(crate) struct State {
    directory: PathBuf,
    _lock: File,
}

/// A chain and its key as found.
pub(crate) struct StoredSvid {
    pub(crate) svid: Svid,
    pub(crate) key: Key,
    pub(crate) renew_after: Option<SystemTime>,
}

impl State {
    pub(crate) fn open(directory: &Path) -> Result<Self, StartError> {
        files::private_directory(directory)?;
        let path = directory.join(LOCK);
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|error| files::io_error(&path, error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { directory: directory.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StartError::InUse(directory.to_owned())),
            Err(TryLockError::Error(error)) => Err(files::io_error(&path, error)),
        }
    }

    /// The stored SVID; `Ok(Err(why))` if there is one that cannot be used.
    pub(crate) fn svid(&self) -> Result<Option<Result<StoredSvid, String>>, StartError> {
        Ok(self.read(SVID)?.map(|bytes| parse_svid(&bytes)))
    }

    pub(crate) fn store_svid(&self, svid: &Svid, key: &Key, renew_after: SystemTime) -> io::Result<()> {
        let millis = renew_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let mut text = Zeroizing::new(format!("postern-svid 1\nrenew-after-unix-ms: {millis}\n"));
        text.push_str(&private_pem(key));
        text.push_str(&svid.chain_pem());
        files::write_private(&self.directory, SVID, text.as_bytes())
    }

    /// The stored bundle; `Ok(Err(why))` if there is one that cannot be used.
    pub(crate) fn bundle(&self) -> Result<Option<Result<Bundle, String>>, StartError> {
        Ok(self.read(BUNDLE)?.map(|bytes| parse_bundle(&bytes)))
    }

    pub(crate) fn bundle_path(&self) -> PathBuf {
        self.directory.join(BUNDLE)
    }

    pub(crate) fn store_bundle(&self, bundle: &Bundle) -> io::Result<()> {
        files::write_private(&self.directory, BUNDLE, bundle_text(bundle).as_bytes())
    }

    /// What the control plane told of other trust domains, as it came.
    pub(crate) fn federation(&self) -> Result<Option<Zeroizing<Vec<u8>>>, StartError> {
        self.read(FEDERATION)
    }

    pub(crate) fn store_federation(&self, bytes: &[u8]) -> io::Result<()> {
        files::write_private(&self.directory, FEDERATION, bytes)
    }

    pub(crate) fn pending_key(&self) -> Result<Option<Key>, StartError> {
        Ok(self.read(PENDING)?.and_then(|bytes| parse_key(&bytes)))
    }

    pub(crate) fn store_pending_key(&self, key: &Key) -> io::Result<()> {
        files::write_private(&self.directory, PENDING, private_pem(key).as_bytes())
    }

    pub(crate) fn forget_pending_key(&self) -> io::Result<()> {
        files::remove(&self.directory, PENDING)
    }

    /// Renames an unusable SVID, for people to look at.
    pub(crate) fn set_svid_aside(&self) -> Result<PathBuf, StartError> {
        self.set_aside(SVID)
    }

    /// Renames an unusable bundle, for people to look at.
    pub(crate) fn set_bundle_aside(&self) -> Result<PathBuf, StartError> {
        self.set_aside(BUNDLE)
    }

    fn set_aside(&self, name: &str) -> Result<PathBuf, StartError> {
        let from = self.directory.join(name);
        let to = self.directory.join(format!("{name}.aside"));
        fs::rename(&from, &to)
            .and_then(|()| files::sync_directory(&self.directory))
            .map_err(|error| files::io_error(&from, error))?;
        Ok(to)
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StartError> {
        files::read_private(&self.directory.join(name))
    }
}

fn parse_svid(bytes: &[u8]) -> Result<StoredSvid, String> {
    let renew_after = header(bytes, "renew-after-unix-ms: ")
        .and_then(|text| text.parse().ok())
        .and_then(|millis| UNIX_EPOCH.checked_add(Duration::from_millis(millis)));
    let key = parse_key(bytes).ok_or("the private key is missing or unreadable")?;
    let chain = CertificateDer::pem_slice_iter(bytes)
        .take(MAX_CHAIN)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("the chain is unreadable: {error}"))?;
    let svid = key.svid(chain).map_err(|error| error.to_string())?;
    Ok(StoredSvid { svid, key, renew_after })
}

/// Roots and lists in one file, so that no crash can put roots in force without what was revoked of them.
fn bundle_text(bundle: &Bundle) -> String {
    let mut text = format!(
        "postern-bundle 1\ntrust-domain: {}\nsequence: {}\njwt-keys: {}\n",
        bundle.trust_domain(),
        bundle.sequence(),
        bundle.jwt_keys().to_jwks()
    );
    for entry in bundle.revocations().iter() {
        let (name, content) = match entry {
            Revoked::Authority(key_id) => (TAINTED, hex(key_id)),
            Revoked::Key(digest) => (KEY, hex(digest)),
            Revoked::Serial(serial) => (SERIAL, hex(serial)),
            Revoked::Id(id) => (ID, id.as_str().to_owned()),
            // One that is added to the verifier must be added here.
            other => {
                debug_assert!(false, "{other} has no place in the file");
                continue;
            }
        };
        text.push_str(name);
        text.push_str(&content);
        text.push('\n');
    }
    text.push_str(&bundle.to_pem());
    text
}

/// The lists of a stored bundle. One line that cannot be read refuses the file: what it revoked must not come back.
fn parse_revocations(head: &str) -> Result<Revocations, String> {
    let mut entries = Vec::new();
    for line in head.lines() {
        let entry = if let Some(text) = line.strip_prefix(TAINTED) {
            unhex(text).map(Revoked::Authority)
        } else if let Some(text) = line.strip_prefix(KEY) {
            unhex(text).and_then(|digest| digest.try_into().ok()).map(Revoked::Key)
        } else if let Some(text) = line.strip_prefix(SERIAL) {
            unhex(text).map(Revoked::Serial)
        } else if let Some(text) = line.strip_prefix(ID) {
            SpiffeId::parse(text).ok().map(Revoked::Id)
        } else {
            continue;
        };
        entries.push(entry.ok_or_else(|| format!("the line {line:?} cannot be read"))?);
    }
    Revocations::new(entries).map_err(|error| error.to_string())
}

fn parse_bundle(bytes: &[u8]) -> Result<Bundle, String> {
    let td = header(bytes, "trust-domain: ").ok_or("the line trust-domain is missing")?;
    let td = TrustDomain::parse(td).map_err(|error| error.to_string())?;
    let sequence = header(bytes, "sequence: ")
        .and_then(|text| text.parse().ok())
        .ok_or("the line sequence is missing or no number")?;
    // The limit on PEM is for roots; the lists above them have their own.
    let begin = bytes.windows(10).position(|window| window == b"-----BEGIN").unwrap_or(bytes.len());
    let (head, pem) = bytes.split_at(begin);
    let bundle = Bundle::from_pem(td, sequence, pem).map_err(|error| error.to_string())?;
    let head = std::str::from_utf8(head).map_err(|_| "it is not text".to_owned())?;
    // Of the version before there is no such line.
    let jwt_keys = renew::jwt_keys(header(bytes, "jwt-keys: ").unwrap_or_default().as_bytes());
    Ok(bundle.with_revocations(parse_revocations(head)?).with_jwt_keys(jwt_keys))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || text.len() > 128 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// The rest of the line that begins with `name`, above the first PEM section.
fn header<'a>(bytes: &'a [u8], name: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(bytes).ok()?;
    text.lines().take_while(|line| !line.starts_with("-----")).find_map(|line| line.strip_prefix(name))
}

fn parse_key(bytes: &[u8]) -> Option<Key> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(bytes).ok()?;
    Some(Key::from_pkcs8(Zeroizing::new(key.secret_pkcs8_der().to_vec())))
}

/// The key as PEM.
pub(crate) fn private_pem(key: &Key) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(key.pkcs8()));
    let mut pem = Zeroizing::new(String::with_capacity(body.len() * 2 + 128));
    pem.push_str("-----BEGIN PRIVATE KEY-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    pem
}

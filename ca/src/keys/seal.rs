//! How a key is sealed: AES-256-GCM under a key that is not in the state directory, with the name of the sealed key as
//! associated data, so that no two files can be swapped.
//!
//! | bytes | |
//! |---|---|
//! | 8 | `POSTSEA` and the byte 1 |
//! | 1 | 1: sealed by a key; 2: by a passphrase, through scrypt (RFC 7914, r = 8, p = 1) |
//! | 1 | log2 of scrypt's N; 0 with a key |
//! | 16 | scrypt's salt; zeros with a key |
//! | 16 | the sealing key's id: the first half of SHA-256 over `postern.dev/seal/1` and the key |
//! | 12 | nonce, random |
//! | rest | the content, encrypted, and GCM's tag of 16 bytes; associated data: the 42 bytes before the nonce, then the name |

use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{Context, SHA256};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::source::{Secret, Source};

const MAGIC: &[u8; 8] = b"POSTSEA\x01";
const BY_KEY: u8 = 1;
const BY_PASSPHRASE: u8 = 2;
const SALT: usize = 16;
const ID: usize = 16;
pub(super) const NONCE: usize = 12;
pub(super) const TAG: usize = 16;
pub(super) const HEADER: usize = MAGIC.len() + 2 + SALT + ID;
/// What sealing adds.
pub(super) const OVERHEAD: usize = HEADER + NONCE + TAG;

/// N = 2^17 with r = 8: 128 MiB and a few tenths of a second for each guess.
const COST: u8 = 17;
/// A file may ask for no more: it was perhaps not written by us.
const MAX_COST: u8 = 18;

const NOT_SEALED: &str = "it is not a sealed file, or only its beginning";

pub(super) type SealingKey = Zeroizing<[u8; 32]>;
type Salt = [u8; SALT];

/// Seals keys, and opens them.
pub struct Seal {
    source: Source,
    secret: Secret,
    cost: u8,
    /// What scrypt made of the passphrase last: once for all files of one salt.
    derived: Mutex<Option<(u8, Salt, SealingKey)>>,
}

impl Seal {
    /// With the secret from `source`.
    pub fn read(source: &Source) -> Result<Self, SealError> {
        let secret = source.read()?;
        Ok(Self { source: source.clone(), secret, cost: COST, derived: Mutex::default() })
    }

    /// Whether the other one has the same secret.
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.secret, &other.secret) {
            (Secret::Key(one), Secret::Key(other)) => one == other,
            (Secret::Passphrase(one), Secret::Passphrase(other)) => one == other,
            _ => false,
        }
    }

    /// Where the secret came from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Seals `content` under `name`.
    pub fn seal(&self, name: &str, content: &[u8]) -> Result<Vec<u8>, SealError> {
        let (header, key) = self.header(MAGIC)?;
        let nonce: [u8; NONCE] = random()?;
        // With room for the tag it never moves, and leaves no copy behind.
        let mut body = Zeroizing::new(Vec::with_capacity(content.len() + TAG));
        body.extend_from_slice(content);
        cipher(&key)?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(associated(&header, name)),
                &mut *body,
            )
            .map_err(|_| SealError::Library)?;
        Ok([&header[..], &nonce, &body].concat())
    }

    /// Opens what was sealed under `name`; `path` is where it was found, for the error.
    pub fn open(&self, path: &Path, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let damaged = |what| SealError::Damaged { path: path.to_owned(), what };
        if sealed.len() < OVERHEAD {
            return Err(damaged(NOT_SEALED));
        }
        let (header, rest) = sealed.split_at(HEADER);
        let key = self.key_of(path, MAGIC, header)?;
        let (nonce, body) = rest.split_at(NONCE);
        let nonce = nonce.try_into().map_err(|_| damaged("its nonce"))?;
        let mut body = Zeroizing::new(body.to_vec());
        let opened = cipher(&key)?.open_in_place(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(associated(header, name)),
            &mut body,
        );
        let length = opened
            .map_err(|_| damaged("it was changed, or is the file of another key by another name"))?
            .len();
        body.truncate(length);
        Ok(body)
    }

    /// The header of something new, and the key to seal it with.
    pub(super) fn header(&self, magic: &[u8; 8]) -> Result<([u8; HEADER], SealingKey), SealError> {
        let (kind, cost, salt) = match &self.secret {
            Secret::Key(_) => (BY_KEY, 0, [0; SALT]),
            Secret::Passphrase(_) => {
                let known = self.derived.lock().as_ref().map(|(cost, salt, _)| (*cost, *salt));
                match known {
                    Some((cost, salt)) if cost == self.cost => (BY_PASSPHRASE, cost, salt),
                    _ => (BY_PASSPHRASE, self.cost, random()?),
                }
            }
        };
        let key = self.key(cost, salt)?;
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(magic);
        header[8..10].copy_from_slice(&[kind, cost]);
        header[10..10 + SALT].copy_from_slice(&salt);
        header[10 + SALT..].copy_from_slice(&id(&key));
        Ok((header, key))
    }

    /// The key that opens what has this header.
    pub(super) fn key_of(
        &self,
        path: &Path,
        magic: &[u8; 8],
        header: &[u8],
    ) -> Result<SealingKey, SealError> {
        let damaged = |what| SealError::Damaged { path: path.to_owned(), what };
        if header.len() != HEADER || header[..7] != magic[..7] {
            return Err(damaged(NOT_SEALED));
        }
        if header[7] != magic[7] {
            return Err(damaged("it is sealed in a form that this version does not know"));
        }
        let (kind, cost) = (header[8], header[9]);
        let salt: Salt = header[10..10 + SALT].try_into().map_err(|_| damaged("its salt"))?;
        match (kind, &self.secret) {
            (BY_KEY, Secret::Key(_)) if cost == 0 && salt == [0; SALT] => {}
            (BY_PASSPHRASE, Secret::Passphrase(_)) if (1..=MAX_COST).contains(&cost) => {}
            (BY_PASSPHRASE, Secret::Key(_)) => return Err(self.other_kind(path, "passphrase", "key")),
            (BY_KEY, Secret::Passphrase(_)) => return Err(self.other_kind(path, "key", "passphrase")),
            _ => return Err(damaged("its header")),
        }
        let key = self.key(cost, salt)?;
        if header[10 + SALT..] != id(&key) {
            return Err(SealError::OtherKey { path: path.to_owned(), secret: self.source.clone() });
        }
        Ok(key)
    }

    fn other_kind(&self, path: &Path, sealed: &'static str, configured: &'static str) -> SealError {
        SealError::OtherKind { path: path.to_owned(), sealed, configured, secret: self.source.clone() }
    }

    fn key(&self, cost: u8, salt: Salt) -> Result<SealingKey, SealError> {
        let passphrase = match &self.secret {
            Secret::Key(key) => return Ok(key.clone()),
            Secret::Passphrase(passphrase) => passphrase,
        };
        // Held while it works: whoever waits would only do the same.
        let mut derived = self.derived.lock();
        if let Some((known_cost, known_salt, key)) = &*derived
            && (*known_cost, *known_salt) == (cost, salt)
        {
            return Ok(key.clone());
        }
        let mut key = Zeroizing::new([0; 32]);
        let params = scrypt::Params::new(cost, 8, 1).map_err(|_| SealError::Library)?;
        scrypt::scrypt(passphrase, &salt, &params, &mut *key).map_err(|_| SealError::Library)?;
        *derived = Some((cost, salt, key.clone()));
        Ok(key)
    }
}

fn associated(header: &[u8], name: &str) -> Vec<u8> {
    [header, name.as_bytes()].concat()
}

fn cipher(key: &SealingKey) -> Result<LessSafeKey, SealError> {
    UnboundKey::new(&AES_256_GCM, &**key).map(LessSafeKey::new).map_err(|_| SealError::Library)
}

/// Tells a wrong key from a damaged file. A hash of 256 random bits, or of what scrypt made, gives nothing away that the tag
/// does not.
fn id(key: &SealingKey) -> [u8; ID] {
    let mut context = Context::new(&SHA256);
    context.update(b"postern.dev/seal/1");
    context.update(&**key);
    let mut id = [0; ID];
    id.copy_from_slice(&context.finish().as_ref()[..ID]);
    id
}

fn random<const N: usize>() -> Result<[u8; N], SealError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| SealError::Library)?;
    Ok(bytes)
}

/// Why something could not be sealed or opened. Each text names the file, the source of the secret and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// A key has both forms, and they differ.
    #[error(
        "{}: another key than the one sealed as {}. Only one of them belongs to the CA's certificates: move the other away, or restore the state directory from a backup",
        .unsealed.display(), .sealed.display()
    )]
    Both {
        /// The unsealed one.
        unsealed: PathBuf,
        /// The sealed one.
        sealed: PathBuf,
    },
    /// Not what was written.
    #[error("{}: {what}; restore it from a backup", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// No backup, or not one of this secret.
    #[error("{}: {what}; name another backup, or its own secret", .path.display())]
    NoBackup {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The random source or the cryptographic library.
    #[error("sealing failed: the system's random source or the cryptographic library refused")]
    Library,
    /// The right kind of secret, and another one.
    #[error(
        "{}: sealed with another secret than the one in {secret}. Put back the one it was sealed with; if `postern ca keys reseal` broke off, run it again", .path.display()
    )]
    OtherKey {
        /// The file.
        path: PathBuf,
        /// Where the secret came from.
        secret: Source,
    },
    /// Another kind of secret.
    #[error(
        "{}: sealed by a {sealed}, but {secret} is a {configured}. Name the {sealed} it was sealed with in keys.seal; to change from one to the other there is `postern ca keys reseal`", .path.display()
    )]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// By what it was sealed.
        sealed: &'static str,
        /// What was given.
        configured: &'static str,
        /// Where that came from.
        secret: Source,
    },
    /// Sealed keys, and no secret named.
    #[error(
        "{}: sealed, and the configuration names no `keys: {{seal: …}}`. Name the secret there that it was sealed with; to have unsealed keys again there is `postern ca keys unseal`", .0.display()
    )]
    Sealed(PathBuf),
    /// The secret cannot be had.
    #[error("keys.seal: {secret}: {why}")]
    Source {
        /// Where it should come from.
        secret: Source,
        /// What is wrong there.
        why: String,
    },
    /// An unsealed key, where they should be sealed.
    #[error(
        "{}: not sealed, though the configuration has keys.seal. Run `postern ca keys seal` with this configuration while no control plane runs, or take keys.seal out of it", .0.display()
    )]
    Unsealed(PathBuf),
}

#[cfg(test)]
pub(in crate::keys) mod tests;

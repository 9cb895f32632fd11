//! Keys of the CA at rest: files of mode 0600 in a directory of mode 0700, refused otherwise; sealed, where a secret is named
//! to seal them with (`keys/seal.rs`).
//!
//! [`KeyStore`] is the seam.

mod key;
mod migrate;
mod seal;
mod sealed;
mod source;
mod split;
mod stream;
mod token;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use postern_svid::TrustDomain;
use rcgen::{KeyPair, SignatureAlgorithm};
use rustls_pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

pub use key::Key;
pub use migrate::{reseal, seal, unseal};
pub use seal::{Seal, SealError};
pub use source::{PinSource, Source};
pub(crate) use stream::{OpenedReader, SealedWriter};
pub use token::TokenConfig;

/// The longest key file that is read; a P-384 key takes 185 bytes.
const MAX_KEY_FILE: u64 = 8_192;
/// What follows the name of a key that is not sealed.
const KEY: &str = ".key";

/// Where private keys rest. They come out only as something that signs.
pub trait KeyStore: Send + Sync + 'static {
    /// Makes a key and stores it durably under `name`, which must be new.
    fn create(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Key, KeyError>;
    /// Stores a key that was made elsewhere, as PKCS#8, under `name`, which must be new.
    fn import(
        &self,
        name: &str,
        pkcs8: &[u8],
        algorithm: &'static SignatureAlgorithm,
    ) -> Result<Key, KeyError>;
    /// Loads the key `name`.
    fn load(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Key, KeyError>;
    /// Forgets the key `name`; none there is fine.
    fn remove(&self, name: &str) -> Result<(), KeyError>;
    /// The names of all keys there are.
    fn names(&self) -> Result<Vec<String>, KeyError>;
    /// The key `name` as it rests, sealed; `None` if it rests otherwise, or not here.
    fn sealed(&self, _name: &str) -> Result<Option<Vec<u8>>, KeyError> {
        Ok(None)
    }
    /// Takes a key over that another store of the same seal gave away as [`sealed`](Self::sealed), under the same, new name;
    /// `false` if keys do not rest sealed here.
    fn take_sealed(&self, _name: &str, _sealed: &[u8]) -> Result<bool, KeyError> {
        Ok(false)
    }
}

/// The keys in `directory`, which [`private_dir`] has checked: sealed with the secret from `seal`, if there is one. A key in the
/// other form is refused: it would lie open where nobody expects it, or be missed.
pub fn open(directory: &Path, seal: Option<&Source>) -> Result<Box<dyn KeyStore>, KeyError> {
    match seal {
        None => match named(directory, sealed::SEALED)?.first() {
            Some(name) => Err(SealError::Sealed(sealed::path(directory, name)).into()),
            None => Ok(Box::new(KeyFiles::new(directory))),
        },
        Some(source) => match named(directory, KEY)?.first() {
            Some(name) => Err(SealError::Unsealed(directory.join(format!("{name}{KEY}"))).into()),
            None => Ok(Box::new(sealed::SealedFiles::new(directory, Seal::read(source)?))),
        },
    }
}

/// The keys in `directory`, which [`private_dir`] has checked, sealed with `seal`.
pub fn open_sealed(directory: &Path, seal: Seal) -> Box<dyn KeyStore> {
    Box::new(sealed::SealedFiles::new(directory, seal))
}

/// As [`open`], with the keys of roots and tiers in a token.
pub fn open_with_token(
    directory: &Path,
    seal: Option<&Source>,
    token: &TokenConfig,
    td: &TrustDomain,
) -> Result<Box<dyn KeyStore>, KeyError> {
    let files = open(directory, seal)?;
    let token_keys = token::TokenKeys::open(token, td)?;
    Ok(Box::new(split::Split { token: token_keys, files, issuing: token.issuing }))
}

/// Key files in a directory, not sealed.
pub struct KeyFiles {
    directory: PathBuf,
}

impl KeyFiles {
    /// Uses `directory`, which [`private_dir`] has checked.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}{KEY}"))
    }
}

impl KeyStore for KeyFiles {
    fn create(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Key, KeyError> {
        let key = generate(algorithm)?;
        write_private(&self.path(name), key.serialized_der())?;
        Ok(key.into())
    }

    fn import(
        &self,
        name: &str,
        pkcs8: &[u8],
        algorithm: &'static SignatureAlgorithm,
    ) -> Result<Key, KeyError> {
        let path = self.path(name);
        let key = pair(pkcs8, algorithm).ok_or_else(|| KeyError::NoKey(path.clone()))?;
        write_private(&path, pkcs8)?;
        Ok(key)
    }

    fn load(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Key, KeyError> {
        let path = self.path(name);
        let der = read_private(&path, MAX_KEY_FILE).map_err(KeyError::of_a_key)?;
        pair(&der, algorithm).ok_or(KeyError::NoKey(path))
    }

    fn remove(&self, name: &str) -> Result<(), KeyError> {
        remove(&self.path(name))
    }

    fn names(&self) -> Result<Vec<String>, KeyError> {
        named(&self.directory, KEY)
    }
}

fn generate(algorithm: &'static SignatureAlgorithm) -> Result<KeyPair, KeyError> {
    KeyPair::generate_for(algorithm).map_err(|_| KeyError::Generate)
}

/// The private key in `der`, if it is one of `algorithm`.
fn pair(der: &[u8], algorithm: &'static SignatureAlgorithm) -> Option<Key> {
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), algorithm).map(Key::from).ok()
}

/// The names of the files of `directory` that end in `suffix`, without it.
fn named(directory: &Path, suffix: &str) -> Result<Vec<String>, KeyError> {
    let io = |error| KeyError::Io(directory.to_owned(), error);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let file = entry.map_err(io)?.file_name();
        // What is not UTF-8 was not named by us.
        names.extend(file.to_str().and_then(|name| name.strip_suffix(suffix)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

pub(crate) fn remove(path: &Path) -> Result<(), KeyError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(KeyError::Io(path.to_owned(), error)),
        _ => Ok(()),
    }
}

/// Makes sure that `directory` exists, is ours, and nobody else may look into it. Its parent must exist: a mistyped path or a
/// disk that is not mounted must not become a new CA.
pub fn private_dir(directory: &Path) -> Result<(), KeyError> {
    let io = |error| KeyError::Io(directory.to_owned(), error);
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(KeyError::NoParent(directory.to_owned()));
        }
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io(error)),
        _ => {}
    }
    private_dir_there(directory)
}

/// As [`private_dir`] of one that must be there.
pub fn private_dir_there(directory: &Path) -> Result<(), KeyError> {
    let found = fs::metadata(directory).map_err(|error| KeyError::Io(directory.to_owned(), error))?;
    if !found.is_dir() {
        return Err(KeyError::NotADirectory(directory.to_owned()));
    }
    check_owner_and_mode(directory, &found, "700")
}

/// Reads a file of ours that only we may read. We made it, and no link to it.
pub fn read_private(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let file = open_regular(path, nix::libc::O_NOFOLLOW)?;
    let found = file.metadata().map_err(|error| KeyError::Io(path.to_owned(), error))?;
    check_owner_and_mode(path, &found, "600")?;
    read_all(path, file, &found, limit)
}

/// Reads a secret that somebody else puts there: ours or root's, and closed to everybody else. Links are followed, for every file
/// of a volume that a cluster or a secret's manager fills is one; owner and mode are those of what they lead to.
pub fn read_given(path: &Path, limit: u64) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let file = open_regular(path, 0)?;
    let found = file.metadata().map_err(|error| KeyError::Io(path.to_owned(), error))?;
    if found.uid() == 0 {
        check_mode(path, &found, "600")?;
    } else {
        check_owner_and_mode(path, &found, "600")?;
    }
    read_all(path, file, &found, limit)
}

/// The file is judged after it is open, through its descriptor: a path can change between two calls. What would block in open is
/// refused.
fn open_regular(path: &Path, flags: i32) -> Result<File, KeyError> {
    let io = |error| KeyError::Io(path.to_owned(), error);
    let flags = flags | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(KeyError::NotAFile(path.to_owned()));
    }
    Ok(file)
}

fn read_all(
    path: &Path,
    file: File,
    found: &fs::Metadata,
    limit: u64,
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let io = |error| KeyError::Io(path.to_owned(), error);
    let length = usize::try_from(found.len().min(limit)).unwrap_or(0);
    // With its room reserved the buffer never moves and leaves no copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length + 1));
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(KeyError::TooLong(path.to_owned(), limit));
    }
    Ok(bytes)
}

/// Writes a new file that only its owner may read, and makes it and its name durable. Never overwrites.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    let io = |error| KeyError::Io(path.to_owned(), error);
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
        _ => io(error),
    })?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io)?;
    sync_parent(path).map_err(io)
}

/// Puts `bytes` at `path` with `mode`, whole or not at all.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), KeyError> {
    let io = |error| KeyError::Io(path.to_owned(), error);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // Two processes may do this at a time (the control plane, `postern ca`).
    name.push(format!(".new.{}", std::process::id()));
    let beside = path.with_file_name(name);
    // What a crash left behind is in the way of create_new.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).map_err(io)?;
    // The umask may have taken bits away; a file for everybody has to be readable by everybody.
    fs::set_permissions(&beside, std::os::unix::fs::PermissionsExt::from_mode(mode)).map_err(io)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io)?;
    fs::rename(&beside, path).and_then(|()| sync_parent(path)).map_err(io)
}

/// Why a key or a private file was refused. Each text names the file and the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Something has this name already.
    #[error("{}: exists already and is not overwritten; delete it or choose another name", .0.display())]
    Exists(PathBuf),
    /// It is not there.
    #[error("{}: this key is missing. Restore it, from a backup of this very state directory; the whole, if there is no such file: postern ca restore (docs/backup.md)", .0.display())]
    Gone(PathBuf),
    /// The random source or the library failed.
    #[error("making a key failed: the system's random source or the cryptographic library refused")]
    Generate,
    /// The system refused.
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    Io(PathBuf, #[source] io::Error),
    /// Others may read or write it.
    #[error("{}: mode {mode:o} lets others in; run: chmod {wanted} {}", .path.display(), .path.display())]
    Mode {
        /// The file or directory.
        path: PathBuf,
        /// What it has.
        mode: u32,
        /// What it must have.
        wanted: &'static str,
    },
    /// The directory above it does not exist.
    #[error(
        "{}: the directory above it does not exist, and is not made, for a mistyped path would become a new CA. Check stateDir and what should be mounted there, or run: mkdir -p -m 700 {}",
        .0.display(), .0.display()
    )]
    NoParent(PathBuf),
    /// The content is no key of the right kind.
    #[error("{}: not a key of the kind that its certificate names (PKCS#8); restore it from a backup of the same day", .0.display())]
    NoKey(PathBuf),
    /// Something else stands where a directory should be.
    #[error("{}: not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// Something else stands where a file should be.
    #[error("{}: not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// It belongs to somebody else.
    #[error("{}: belongs to user {owner}, this process runs as {user}; run it as that user, or: chown {user} {}", .path.display(), .path.display())]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Ourselves.
        user: u32,
    },
    /// It cannot be sealed or opened, or is where it should be sealed and is not.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A token, or the module that leads to it.
    #[error("keys.pkcs11: {place}: {what}")]
    Token {
        /// The module and the token's label, or the key.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// Longer than anything it could be.
    #[error("{path}: longer than {limit} bytes", path = .0.display(), limit = .1)]
    TooLong(PathBuf, u64),
}

impl KeyError {
    /// Of a key's file, which is there as long as the CA is.
    fn of_a_key(self) -> Self {
        match self {
            Self::Io(path, error) if error.kind() == io::ErrorKind::NotFound => Self::Gone(path),
            other => other,
        }
    }
}

pub(crate) fn check_owner_and_mode(
    path: &Path,
    found: &fs::Metadata,
    wanted: &'static str,
) -> Result<(), KeyError> {
    let user = nix::unistd::geteuid().as_raw();
    if found.uid() != user {
        return Err(KeyError::Owner { path: path.to_owned(), owner: found.uid(), user });
    }
    check_mode(path, found, wanted)
}

fn check_mode(path: &Path, found: &fs::Metadata, wanted: &'static str) -> Result<(), KeyError> {
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Mode { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

/// A new name survives a crash only once its directory is synced.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests;

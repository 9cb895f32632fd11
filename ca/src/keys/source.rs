//! Where the secret comes from that seals the keys: never from a command line, which everybody can read.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::termios::{self, LocalFlags, SetArg};
use zeroize::Zeroizing;

use super::seal::SealError;
use super::{KeyError, read_given};

/// A key of 256 bits in hexadecimal and a line's end; the longest passphrase that is read.
const MAX_SECRET: u64 = 1_024;
/// Seven words of a word list have about 90 bits and more letters than this; shorter ones are guessed from a stolen file.
const MIN_PASSPHRASE: usize = 20;

/// Where the secret is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// A file of mode 0600 that holds a key: 64 hexadecimal digits.
    KeyFile(PathBuf),
    /// A file of mode 0600 that holds a passphrase.
    PassphraseFile(PathBuf),
    /// An environment variable that holds a key: 64 hexadecimal digits.
    Environment(String),
    /// A credential that systemd hands to the service, and that holds a key: 64 hexadecimal digits.
    Credential(String),
    /// The terminal, where a passphrase is typed.
    Terminal,
}

/// Where the PIN of a token is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PinSource {
    /// A file of mode 0600.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A credential that systemd hands to the service.
    Credential(String),
}

/// What was there.
pub(super) enum Secret {
    Key(Zeroizing<[u8; 32]>),
    Passphrase(Zeroizing<Vec<u8>>),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyFile(path) => write!(f, "keyFile {}", path.display()),
            Self::PassphraseFile(path) => write!(f, "passphraseFile {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Credential(name) => write!(f, "credential {name}"),
            Self::Terminal => f.write_str("what was typed"),
        }
    }
}

impl fmt::Display for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Credential(name) => write!(f, "credential {name}"),
        }
    }
}

impl PinSource {
    /// The PIN: a text without the line's end.
    pub(super) fn read(&self) -> Result<Zeroizing<String>, String> {
        let refused = |why: String| format!("the PIN in {self}: {why}");
        let bytes = match self {
            Self::File(path) => read_given(path, MAX_SECRET).map_err(|error| refused(explain(error)))?,
            Self::Environment(name) => {
                let text = variable(name).map_err(refused)?;
                Zeroizing::new(text.as_bytes().to_vec())
            }
            Self::Credential(name) => credential_of_service(name).map_err(refused)?,
        };
        let pin = std::str::from_utf8(&bytes).map_err(|_| refused("it is no text".to_owned()))?;
        let pin = pin.trim_end_matches(['\n', '\r']);
        if pin.is_empty() || pin.contains('\n') {
            return Err(refused("a PIN is one line".to_owned()));
        }
        Ok(Zeroizing::new(pin.to_owned()))
    }
}

impl Source {
    pub(super) fn read(&self) -> Result<Secret, SealError> {
        let refused = |why: String| SealError::Source { secret: self.clone(), why };
        match self {
            Self::KeyFile(path) => {
                let bytes = read_given(path, MAX_SECRET).map_err(|error| refused(explain(error)))?;
                key(&bytes).map(Secret::Key).map_err(refused)
            }
            Self::PassphraseFile(path) => {
                let bytes = read_given(path, MAX_SECRET).map_err(|error| refused(explain(error)))?;
                passphrase(&bytes).map(Secret::Passphrase).map_err(refused)
            }
            Self::Environment(name) => {
                let text = variable(name).map_err(refused)?;
                key(text.as_bytes()).map(Secret::Key).map_err(refused)
            }
            Self::Credential(name) => {
                let bytes = credential_of_service(name).map_err(refused)?;
                key(&bytes).map(Secret::Key).map_err(refused)
            }
            Self::Terminal => passphrase(&typed().map_err(refused)?).map(Secret::Passphrase).map_err(refused),
        }
    }
}

/// The environment keeps its copy: nothing can take it away safely once threads may read it.
fn variable(name: &str) -> Result<Zeroizing<String>, String> {
    std::env::var(name).map(Zeroizing::new).map_err(|error| match error {
        std::env::VarError::NotPresent => "that variable is not set".to_owned(),
        std::env::VarError::NotUnicode(_) => "its value is no text".to_owned(),
    })
}

fn credential_of_service(name: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        "CREDENTIALS_DIRECTORY is not set: run this as a systemd service with LoadCredential= or LoadCredentialEncrypted="
            .to_owned()
    })?;
    credential(Path::new(&directory), name)
}

/// A line that is typed and not shown.
fn typed() -> Result<Zeroizing<Vec<u8>>, String> {
    let io = |error: io::Error| {
        format!("no passphrase can be typed here ({error}); name its file with --passphrase-file")
    };
    let mut terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(io)?;
    let before = termios::tcgetattr(&terminal).map_err(|error| io(error.into()))?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    silent.local_flags.insert(LocalFlags::ECHONL | LocalFlags::ICANON);
    terminal.write_all(b"Passphrase of the offline root (one line, at least 20 bytes): ").map_err(io)?;
    termios::tcsetattr(&terminal, SetArg::TCSAFLUSH, &silent).map_err(|error| io(error.into()))?;
    // In its canonical mode a terminal gives a line at a time, of which the rest is somebody else's.
    let mut line = Zeroizing::new(vec![0; MAX_SECRET as usize + 2]);
    let read = terminal.read(&mut line);
    let _ = termios::tcsetattr(&terminal, SetArg::TCSAFLUSH, &before);
    let length = read.map_err(io)?;
    line.truncate(length);
    Ok(line)
}

fn explain(error: KeyError) -> String {
    match error {
        KeyError::Io(_, error) if error.kind() == io::ErrorKind::NotFound => {
            "there is no such file".to_owned()
        }
        // Its path is named already.
        error => {
            let text = error.to_string();
            let bare = match &error {
                KeyError::Io(path, _)
                | KeyError::Mode { path, .. }
                | KeyError::Owner { path, .. }
                | KeyError::NotAFile(path)
                | KeyError::TooLong(path, _) => text.strip_prefix(&format!("{}: ", path.display())),
                _ => None,
            };
            bare.map(str::to_owned).unwrap_or(text)
        }
    }
}

/// The credential `name`. Its directory is systemd's, which gives it to root or to the service's user, readable for nobody
/// else; the group's bits show an access list's mask.
fn credential(directory: &Path, name: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err("not a credential's name, which is a plain file name".to_owned());
    }
    let path = directory.join(name);
    let io = |error: io::Error| format!("{}: {error}", path.display());
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).map_err(io)?;
    let found: fs::Metadata = file.metadata().map_err(io)?;
    let user = nix::unistd::geteuid().as_raw();
    if !found.is_file() || found.uid() != 0 && found.uid() != user || found.mode() & 0o037 != 0 {
        return Err(format!(
            "{}: not a file of root's or of this user's that is closed to others (mode {:o})",
            path.display(),
            found.mode() & 0o7777
        ));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET as usize + 2));
    file.take(MAX_SECRET + 1).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

fn key(bytes: &[u8]) -> Result<Zeroizing<[u8; 32]>, String> {
    const FORM: &str =
        "not a key: 64 hexadecimal digits are one. Make one with: (umask 077; openssl rand -hex 32 > FILE)";
    let digits = bytes.trim_ascii();
    if digits.len() != 64 {
        return Err(FORM.to_owned());
    }
    let mut key = Zeroizing::new([0; 32]);
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else { return Err(FORM.to_owned()) };
        *byte = (high << 4 | low) as u8;
    }
    if key.iter().all(|byte| *byte == key[0]) {
        return Err("not a key: the same byte 32 times is a placeholder".to_owned());
    }
    Ok(key)
}

fn passphrase(bytes: &[u8]) -> Result<Zeroizing<Vec<u8>>, String> {
    if bytes.len() as u64 > MAX_SECRET {
        return Err(format!("longer than {MAX_SECRET} bytes"));
    }
    // What an editor or `echo` adds is none of it; spaces within and before are.
    let end = bytes.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |at| at + 1);
    let bytes = &bytes[..end];
    if bytes.contains(&b'\n') {
        return Err("a passphrase is one line".to_owned());
    }
    if bytes.len() < MIN_PASSPHRASE {
        return Err(format!(
            "a passphrase of {} bytes is guessed from a stolen file: at least {MIN_PASSPHRASE}, say seven random words",
            bytes.len()
        ));
    }
    Ok(Zeroizing::new(bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::keys::write_private;

    fn why(source: &Source) -> String {
        source.read().err().unwrap().to_string()
    }

    #[test]
    fn what_is_a_key_and_what_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8]| {
            let path = dir.path().join(name);
            write_private(&path, text).unwrap();
            Source::KeyFile(path)
        };
        let digits = "00112233445566778899aabbccddeeffFFEEDDCCBBAA99887766554433221100";
        for good in [digits.to_owned(), format!("{digits}\n"), format!("  {digits}\r\n")] {
            let Secret::Key(key) = file(&format!("good-{}", good.len()), good.as_bytes()).read().unwrap()
            else {
                panic!("a key")
            };
            assert_eq!(crate::hex(&*key), digits.to_lowercase());
        }
        for (name, bad) in [
            ("empty", ""),
            ("short", &digits[..62]),
            ("long", &format!("{digits}00")),
            ("no-digit", &digits.replace('0', "g")),
            ("utf8", &digits.replacen("00", "é", 1)),
            ("zeros", &"0".repeat(64)),
            ("two-lines", &format!("{digits}\n{digits}")),
        ] {
            let text = why(&file(name, bad.as_bytes()));
            assert!(text.contains("not a key") && text.contains(name), "{name}: {text}");
        }
        let text = why(&file("huge", &[b'0'; 4_096]));
        assert!(text.contains("longer than 1024 bytes"), "{text}");
        let gone = Source::KeyFile(dir.path().join("gone"));
        assert!(why(&gone).contains("there is no such file"), "{}", why(&gone));
        let Source::KeyFile(open) = file("open", digits.as_bytes()) else { panic!("a file") };
        fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(why(&Source::KeyFile(open.clone())).contains("chmod 600"));
        // As in a Secret's volume: the name leads to a file, and that one is judged.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&open, &link).unwrap();
        assert!(why(&Source::KeyFile(link.clone())).contains("link: mode 644 lets"), "named once");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o400)).unwrap();
        assert!(matches!(Source::KeyFile(link).read(), Ok(Secret::Key(_))));
    }

    #[test]
    fn passphrases_are_one_long_line() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &str| {
            let path = dir.path().join(name);
            write_private(&path, text.as_bytes()).unwrap();
            Source::PassphraseFile(path).read()
        };
        let words = " seven random words of a list";
        let Ok(Secret::Passphrase(found)) = read("good", &format!("{words}\r\n")) else { panic!("good") };
        assert_eq!(found.as_slice(), words.as_bytes());
        for (name, bad, says) in [
            ("short", "correct horse\n", "at least 20"),
            ("lines", "seven random words\nof a list here", "one line"),
            ("ends", &"\n".repeat(30), "at least 20"),
            ("huge", &"a".repeat(2_000), "longer than 1024"),
        ] {
            let error = read(name, bad).err().unwrap().to_string();
            assert!(error.contains(says), "{name}: {error}");
        }
    }

    #[test]
    fn a_variable_or_credential_that_is_not_there() {
        let missing = Source::Environment("POSTERN_TEST_NO_SUCH_VARIABLE".to_owned());
        assert!(why(&missing).contains("not set"), "{}", why(&missing));
        let path = Source::Environment("PATH".to_owned());
        assert!(why(&path).contains("not a key"));
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", ".", "..", "../key", "a/b", "/etc/passwd"] {
            assert!(credential(dir.path(), bad).is_err(), "{bad}");
        }
        let place = dir.path().join("seal");
        fs::write(&place, "x").unwrap();
        for (mode, good) in [(0o400, true), (0o440, true), (0o600, true), (0o444, false), (0o460, false)] {
            fs::set_permissions(&place, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(credential(dir.path(), "seal").is_ok(), good, "{mode:o}");
        }
        std::os::unix::fs::symlink(&place, dir.path().join("link")).unwrap();
        assert!(credential(dir.path(), "link").is_err());
    }
}

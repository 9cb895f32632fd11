use std::os::unix::fs::{PermissionsExt, symlink};

use rcgen::PublicKeyData as _;

use super::*;
use crate::profile::{ISSUING_KEY, ROOT_KEY};

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn keys_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let files = KeyFiles::new(dir.path());
    let made = files.create("a", ISSUING_KEY).unwrap();
    let loaded = files.load("a", ISSUING_KEY).unwrap();
    assert_eq!(made.der_bytes(), loaded.der_bytes());
    assert_eq!(fs::metadata(dir.path().join("a.key")).unwrap().mode() & 0o7777, 0o600);
    assert!(matches!(files.create("a", ISSUING_KEY), Err(KeyError::Exists(_))), "never overwritten");
    assert!(matches!(files.load("a", ROOT_KEY), Err(KeyError::NoKey(_))));
    fs::write(dir.path().join("a.pem"), "").unwrap();
    assert_eq!(files.names().unwrap(), ["a"]);
    files.remove("a").unwrap();
    files.remove("a").unwrap();
    let gone = files.load("a", ISSUING_KEY).err().unwrap().to_string();
    assert!(gone.contains("a.key: this key is missing. Restore it"), "{gone}");
}

#[test]
fn open_doors_are_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let files = KeyFiles::new(dir.path());
    files.create("a", ISSUING_KEY).unwrap();
    let path = dir.path().join("a.key");
    for bad in [0o640, 0o604, 0o620, 0o601, 0o644] {
        mode(&path, bad);
        let error = files.load("a", ISSUING_KEY).err().unwrap().to_string();
        assert!(error.contains(&format!("mode {bad:o}")), "{error}");
        assert!(error.contains("chmod 600"), "{error}");
    }
    mode(&path, 0o400);
    files.load("a", ISSUING_KEY).unwrap();

    symlink(&path, dir.path().join("b.key")).unwrap();
    assert!(matches!(files.load("b", ISSUING_KEY), Err(KeyError::Io(..))), "a link is refused");
    fs::create_dir(dir.path().join("c.key")).unwrap();
    assert!(matches!(files.load("c", ISSUING_KEY), Err(KeyError::NotAFile(_))));
}

#[test]
fn private_directories() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("a/b");
    let error = private_dir(&state).unwrap_err().to_string();
    assert!(error.contains(&format!("mkdir -p -m 700 {}", state.display())), "{error}");
    assert!(!dir.path().join("a").exists());
    fs::create_dir(dir.path().join("a")).unwrap();
    private_dir(&state).unwrap();
    assert_eq!(fs::metadata(&state).unwrap().mode() & 0o7777, 0o700);
    private_dir(&state).unwrap();
    for bad in [0o750, 0o705, 0o711, 0o777] {
        mode(&state, bad);
        let error = private_dir(&state).unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(private_dir(&file), Err(KeyError::NotADirectory(_) | KeyError::Io(..))));
}

#[test]
fn replaced_whole_whatever_the_umask_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bundle.pem");
    let left = dir.path().join(format!("bundle.pem.new.{}", std::process::id()));
    fs::write(&left, "left by a crash").unwrap();
    replace(&path, 0o644, b"one").unwrap();
    replace(&path, 0o644, b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    assert!(!left.exists());
}

#[test]
fn long_files_are_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    write_private(&path, &[b'a'; 100]).unwrap();
    assert!(matches!(read_private(&path, 99), Err(KeyError::TooLong(_, 99))));
    assert_eq!(read_private(&path, 100).unwrap().len(), 100);
}

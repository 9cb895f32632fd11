use std::path::PathBuf;

use rcgen::PublicKeyData as _;

use super::*;
use crate::keys::seal::tests::{by_key, by_passphrase};
use crate::keys::sealed::SealedFiles;
use crate::keys::{KeyFiles, KeyStore};
use crate::profile::{ISSUING_KEY, ROOT_KEY};

struct Place {
    dir: tempfile::TempDir,
    /// Name, PKCS#8, public key.
    keys: Vec<(&'static str, Vec<u8>, Vec<u8>)>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = KeyFiles::new(dir.path());
        let keys = [("root-1", ROOT_KEY), ("issuing-2", ISSUING_KEY), ("ledger", &rcgen::PKCS_ED25519)];
        let keys = keys.map(|(name, algorithm)| {
            let public = files.create(name, algorithm).unwrap().der_bytes().to_vec();
            (name, fs::read(dir.path().join(format!("{name}.key"))).unwrap(), public)
        });
        fs::write(dir.path().join("ca.mark"), "something else").unwrap();
        Self { dir, keys: keys.into() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Whether a part of a private key lies in some file.
    fn has_plaintext(&self) -> bool {
        let files: Vec<_> = self.files().iter().map(|path| fs::read(path).unwrap()).collect();
        // Within the private scalar, in each of the three forms.
        let secrets = self.keys.iter().map(|(_, der, public)| {
            let secret = &der[36..48];
            assert!(!public.windows(12).any(|part| part == secret));
            secret
        });
        secrets.into_iter().any(|secret| files.iter().any(|file| file.windows(12).any(|part| part == secret)))
    }

    /// Every key can be read in at least one form.
    fn all_can_be_read(&self, seals: &[&Seal]) {
        for (name, der, _) in &self.keys {
            let plain = fs::read(self.path().join(format!("{name}.key"))).is_ok_and(|found| found == *der);
            let sealed = seals
                .iter()
                .any(|seal| sealed::open(self.path(), name, seal).is_ok_and(|found| found.as_slice() == der));
            assert!(plain || sealed, "{name} is lost");
        }
    }
}

fn failing_after(steps: usize) -> impl FnMut() -> Result<(), KeyError> {
    let mut left = steps;
    move || {
        left = left.checked_sub(1).ok_or_else(|| KeyError::Io("test".into(), io::Error::other("killed")))?;
        Ok(())
    }
}

#[test]
fn sealed_keys_are_the_same_keys_and_no_plaintext_stays() {
    let place = Place::new();
    assert!(place.has_plaintext());
    let ours = by_key(1);
    fs::write(place.path().join("root-1.key.new.77"), &place.keys[0].1).unwrap();
    let half = place.path().join("root-1.sealed.new.78");
    fs::write(&half, "half").unwrap();
    assert_eq!(seal(place.path(), &ours).unwrap(), ["issuing-2", "ledger", "root-1"]);
    assert!(!half.exists(), "of a run that was killed");
    assert!(!place.has_plaintext(), "{:?}", place.files());
    assert!(seal(place.path(), &ours).unwrap().is_empty(), "nothing is left to do");

    let store = SealedFiles::new(place.path(), by_key(1));
    assert_eq!(store.load("root-1", ROOT_KEY).unwrap().der_bytes(), place.keys[0].2);
    assert!(matches!(store.load("root-1", ISSUING_KEY), Err(KeyError::NoKey(_))));
    assert_eq!(store.names().unwrap(), ["issuing-2", "ledger", "root-1"]);
    store.create("issuing-3", ISSUING_KEY).unwrap();
    assert!(matches!(store.create("issuing-3", ISSUING_KEY), Err(KeyError::Exists(_))));
    store.remove("issuing-3").unwrap();
    store.remove("issuing-3").unwrap();

    assert_eq!(unseal(place.path(), &ours).unwrap().len(), 3);
    for (name, der, _) in &place.keys {
        assert_eq!(fs::read(place.path().join(format!("{name}.key"))).unwrap(), *der);
    }
    assert!(place.files().iter().all(|path| path.extension().is_none_or(|end| end != "sealed")));
}

#[test]
fn a_migration_broken_off_anywhere_loses_nothing_and_is_done_again() {
    let (one, other) = (by_key(1), by_passphrase("seven words"));
    for steps in 0.. {
        let place = Place::new();
        let sealed = seal_by(place.path(), &one, &mut failing_after(steps));
        place.all_can_be_read(&[&one]);
        seal(place.path(), &one).unwrap();
        place.all_can_be_read(&[&one]);
        assert!(!place.has_plaintext());
        if sealed.is_ok() {
            assert_eq!(steps, 9, "three changes for each of three keys");
            break;
        }
    }
    for steps in 0.. {
        let place = Place::new();
        seal(place.path(), &one).unwrap();
        let resealed = reseal_by(place.path(), &one, &other, &mut failing_after(steps));
        place.all_can_be_read(&[&one, &other]);
        let rest = reseal(place.path(), &one, &other).unwrap();
        assert_eq!(rest.len(), 3 - steps.min(3));
        place.all_can_be_read(&[&other]);
        assert!(!place.has_plaintext());
        if resealed.is_ok() {
            break;
        }
    }
    for steps in 0.. {
        let place = Place::new();
        seal(place.path(), &one).unwrap();
        let unsealed = unseal_by(place.path(), &one, &mut failing_after(steps));
        place.all_can_be_read(&[&one]);
        unseal(place.path(), &one).unwrap();
        place.all_can_be_read(&[]);
        if unsealed.is_ok() {
            break;
        }
    }
}

#[test]
fn a_key_half_written_or_half_erased_is_told_from_another_key() {
    let (place, ours) = (Place::new(), by_key(1));
    let plain = place.path().join("root-1.key");
    seal(place.path(), &ours).unwrap();
    // A crash within the overwriting.
    let mut half = place.keys[0].1.clone();
    half[..90].fill(0);
    crate::keys::write_private(&plain, &half).unwrap();
    assert_eq!(seal(place.path(), &ours).unwrap(), ["root-1"]);
    assert!(!plain.exists());

    // Somebody else's key by this name: which of them is right cannot be known here.
    KeyFiles::new(place.path()).create("root-1", ROOT_KEY).unwrap();
    let before = fs::read(&plain).unwrap();
    for result in [seal(place.path(), &ours), unseal(place.path(), &ours)] {
        let text = result.unwrap_err().to_string();
        assert!(text.contains("root-1.key") && text.contains("root-1.sealed"), "{text}");
    }
    assert_eq!(fs::read(&plain).unwrap(), before);

    // No key at all, and nothing sealed to fall back to: it is not thrown away.
    let place = Place::new();
    let plain = place.path().join("root-1.key");
    fs::write(&plain, "no key").unwrap();
    assert!(matches!(seal(place.path(), &ours), Err(KeyError::NoKey(path)) if path == plain));
    assert!(plain.exists());
}

#[test]
fn another_secret_changes_nothing() {
    let (place, ours, other) = (Place::new(), by_key(1), by_key(2));
    seal(place.path(), &ours).unwrap();
    KeyFiles::new(place.path()).create("issuing-4", ISSUING_KEY).unwrap();
    for result in [seal(place.path(), &other), unseal(place.path(), &other)] {
        assert!(matches!(result, Err(KeyError::Seal(SealError::OtherKey { .. }))));
    }
    assert!(place.path().join("issuing-4.key").exists());
    assert!(!place.path().join("issuing-2.key").exists());
    assert!(matches!(
        reseal(place.path(), &ours, &other),
        Err(KeyError::Seal(SealError::Unsealed(path))) if path.ends_with("issuing-4.key")
    ));
}

#[test]
fn a_store_wants_all_its_keys_in_one_form() {
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new();
    let secret = dir.path().join("seal.key");
    crate::keys::write_private(&secret, &b"0123456789abcdef".repeat(4)).unwrap();
    let source = crate::keys::Source::KeyFile(secret);
    let refused = |seal: Option<&crate::keys::Source>| {
        crate::keys::open(place.path(), seal).err().expect("refused").to_string()
    };
    let text = refused(Some(&source));
    assert!(text.contains("issuing-2.key: not sealed") && text.contains("postern ca keys seal"), "{text}");
    crate::keys::open(place.path(), None).unwrap().load("root-1", ROOT_KEY).unwrap();

    let ours = Seal::read(&source).unwrap();
    seal(place.path(), &ours).unwrap();
    crate::keys::open(place.path(), Some(&source)).unwrap().load("root-1", ROOT_KEY).unwrap();
    let text = refused(None);
    assert!(text.contains("issuing-2.sealed: sealed") && text.contains("keys unseal"), "{text}");

    // Both at once, as a migration that broke off leaves them, are refused either way.
    KeyFiles::new(place.path()).create("issuing-2", ISSUING_KEY).unwrap();
    refused(None);
    refused(Some(&source));
}

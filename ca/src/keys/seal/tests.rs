use super::*;
use crate::keys::write_private;

pub(in crate::keys) fn by_key(byte: u8) -> Seal {
    let mut key = Zeroizing::new([byte; 32]);
    key[0] ^= 1;
    let source = Source::KeyFile(format!("/etc/seal-{byte}.key").into());
    Seal { source, secret: Secret::Key(key), cost: COST, derived: Mutex::default() }
}

/// With a cost at which tests do not wait.
pub(in crate::keys) fn by_passphrase(words: &str) -> Seal {
    let source = Source::PassphraseFile("/etc/words".into());
    let secret = Secret::Passphrase(Zeroizing::new(words.as_bytes().to_vec()));
    Seal { source, secret, cost: 4, derived: Mutex::default() }
}

const CONTENT: &[u8] = b"a private key, or what a test takes for one";

fn refused(seal: &Seal, name: &str, sealed: &[u8]) -> String {
    seal.open(Path::new("/state/root.sealed"), name, sealed).expect_err("refused").to_string()
}

#[test]
fn what_was_sealed_opens_by_its_secret_and_name_alone() {
    for (ours, other) in
        [(by_key(1), by_key(2)), (by_passphrase("seven words"), by_passphrase("seven other words"))]
    {
        let sealed = ours.seal("root", CONTENT).unwrap();
        assert_eq!(ours.open(Path::new("f"), "root", &sealed).unwrap().as_slice(), CONTENT);
        assert!(!sealed.windows(8).any(|part| CONTENT.windows(8).any(|plain| plain == part)));
        assert_ne!(ours.seal("root", CONTENT).unwrap(), sealed, "never twice the same");

        let text = refused(&other, "root", &sealed);
        assert!(text.contains("/state/root.sealed") && text.contains("another secret"), "{text}");
        assert!(text.contains(&other.source.to_string()), "{text}");
        let text = refused(&ours, "issuing", &sealed);
        assert!(text.contains("by another name"), "swapped files are refused: {text}");
    }
    let (key, words) = (by_key(1), by_passphrase("seven words"));
    let text = refused(&words, "root", &key.seal("root", CONTENT).unwrap());
    assert!(text.contains("sealed by a key") && text.contains("passphraseFile /etc/words"), "{text}");
    let text = refused(&key, "root", &words.seal("root", CONTENT).unwrap());
    assert!(text.contains("sealed by a passphrase") && text.contains("keyFile"), "{text}");
}

#[test]
fn every_bit_counts_and_a_part_is_nothing() {
    for seal in [by_key(1), by_passphrase("seven words")] {
        let sealed = seal.seal("root", CONTENT).unwrap();
        assert_eq!(sealed.len(), OVERHEAD + CONTENT.len());
        for at in 0..sealed.len() {
            // Every bit of the costly part would be a test of scrypt.
            for bit in [0, 7] {
                let mut changed = sealed.clone();
                changed[at] ^= 1 << bit;
                assert!(seal.open(Path::new("f"), "root", &changed).is_err(), "byte {at}, bit {bit}");
            }
        }
        for length in 0..sealed.len() {
            assert!(seal.open(Path::new("f"), "root", &sealed[..length]).is_err(), "{length} bytes");
        }
        let longer = [&sealed[..], &[0]].concat();
        assert!(seal.open(Path::new("f"), "root", &longer).is_err());
    }
}

#[test]
fn a_file_cannot_ask_for_more_memory_than_we_would() {
    let seal = by_passphrase("seven words");
    let mut sealed = seal.seal("root", CONTENT).unwrap();
    for cost in [0, MAX_COST + 1, 40, 63, 64, 255] {
        sealed[9] = cost;
        assert!(refused(&seal, "root", &sealed).contains("its header"), "{cost}");
    }
}

#[test]
fn one_scrypt_for_all_files_of_one_salt() {
    let seal = by_passphrase("seven words");
    let first = seal.seal("root", CONTENT).unwrap();
    let second = seal.seal("issuing", CONTENT).unwrap();
    assert_eq!(first[10..26], second[10..26], "they share their salt");
    let again = by_passphrase("seven words");
    again.open(Path::new("f"), "root", &first).unwrap();
    again.open(Path::new("f"), "issuing", &second).unwrap();
    assert_eq!(again.seal("new", CONTENT).unwrap()[10..26], first[10..26], "what is added shares it too");
    assert_ne!(by_passphrase("seven words").seal("root", CONTENT).unwrap()[10..26], first[10..26]);
}

#[test]
fn a_seal_read_from_a_file_uses_the_full_cost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("words");
    write_private(&path, b"seven words that nobody guesses\n").unwrap();
    let seal = Seal::read(&Source::PassphraseFile(path)).unwrap();
    assert_eq!(seal.cost, 17);
    assert_eq!(seal.source().to_string(), format!("passphraseFile {}", dir.path().join("words").display()));
}

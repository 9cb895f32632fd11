use std::os::unix::fs::PermissionsExt as _;

use postern_svid::Clock as _;

use super::*;
use crate::testing::{Home, Vault, start, td};

#[test]
fn a_root_signs_tiers_and_remembers_each() {
    let (home, vault) = Home::offline();
    let mut names: Vec<_> = fs::read_dir(vault.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [README, "root-offline.sealed", LOCK, CERTIFICATE, RECORD]);
    assert_eq!(fs::metadata(vault.path()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::read_to_string(vault.path().join(README)).unwrap().lines().count(), 5);
    let request = home.request_tier(false);
    let file = vault.sign(&request, 365, start());
    let first = fs::read(&file).unwrap();
    assert_eq!(vault.open(start()).unwrap().signed(), 2);
    assert_eq!(
        fs::read(vault.sign(&request, 365, start())).unwrap(),
        first,
        "the same request, the same answer"
    );
    assert_eq!(vault.open(start()).unwrap().signed(), 2);

    let again = OfflineRoot::create(&td(), &vault.path(), vault.seal(), start());
    assert!(again.unwrap_err().to_string().contains("exists already"));
    let mut root = vault.open(start()).unwrap();
    assert!(vault.open(start()).err().unwrap().to_string().contains("signing something already"));
    let asked = root.read(&file.with_extension("csr")).unwrap();
    assert_eq!(asked.label, request.label);
    for days in [59, 1_101] {
        let why = root.sign(&asked, days, start()).unwrap_err().to_string();
        assert!(why.contains("60 to 1100 days"), "{why}");
    }
    drop(root);
    // Dates that the machine's clock makes up.
    let why = vault.open(start() - Duration::from_secs(DAY)).err().unwrap().to_string();
    assert!(why.contains("set this machine's clock"), "{why}");
    let later = start() + Duration::from_secs(3_651 * DAY);
    assert!(vault.open(later).err().unwrap().to_string().contains("it has ended"));
    // Near its end a tier ends with it.
    let late = start() + Duration::from_secs(3_600 * DAY);
    let other = home.request_tier(true);
    let csr = vault.dir.path().join("late.csr");
    fs::write(&csr, pem("CERTIFICATE REQUEST", &other.csr)).unwrap();
    let mut root = vault.open(late).unwrap();
    let asked = root.read(&csr).unwrap();
    assert_eq!(root.sign(&asked, 365, late).unwrap().not_after, start() + LIFE);
    drop(root);
    let why = vault.open(start()).err().unwrap().to_string();
    assert!(why.contains("when this root signed last"), "{why}");
}

#[test]
fn a_record_that_was_changed_is_noticed_and_one_that_was_cut_off_mended() {
    let (home, vault) = Home::offline();
    vault.sign(&home.request_tier(true), 365, start());
    vault.sign(&home.request_tier(true), 400, start());
    let path = vault.path().join(RECORD);
    let whole = fs::read(&path).unwrap();
    // Between the line and its end: the certificate has not left.
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_eq!(vault.open(start()).unwrap().signed(), 2);
    let text = String::from_utf8(whole.clone()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    for (bad, number) in [
        (format!("{}\n{}\n", lines[0], lines[2]), 2),
        (format!("{}\n{}\n", lines[1], lines[2]), 1),
        (text.replacen("\"at\":1", "\"at\":2", 1), 1),
        (format!("{text}nonsense\n"), 4),
    ] {
        fs::write(&path, &bad).unwrap();
        let why = vault.open(start()).err().unwrap().to_string();
        assert!(why.contains(&format!("line {number} was changed")), "{why}");
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(vault.open(start()).unwrap().signed(), 3);
    fs::set_permissions(vault.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(vault.open(start()).err().unwrap().to_string().contains("chmod 700"));
}

#[test]
fn what_is_no_request_for_a_tier_is_not_signed() {
    let home = Home::new();
    let vault = Vault::new(home.clock.wall());
    let root = vault.open(start()).unwrap();
    let file = vault.dir.path().join("request");
    let generate = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    let request = |td: &TrustDomain, label: &str, key: &KeyPair| {
        pem("CERTIFICATE REQUEST", &profile::tier_request(td, label, key).unwrap())
    };
    let key = generate(profile::TIER_KEY);
    let good = request(&td(), "tier-0123456789abcdef", &key);
    let other = TrustDomain::parse("other.example").unwrap();
    let short = request(&td(), "tier-0123456789abcdef", &generate(&rcgen::PKCS_ECDSA_P256_SHA256));
    let leaf = pem("CERTIFICATE REQUEST", &csr::own(&key).unwrap());
    let mut forged = csr::own(&key).unwrap();
    forged.extend([0; 5]);
    for (what, text, says) in [
        ("nothing", String::new(), "no request in PEM"),
        ("a certificate", fs::read_to_string(vault.certificate()).unwrap(), "no request in PEM"),
        ("two", format!("{good}{good}"), "several requests"),
        ("another trust domain", request(&other, "tier-0123456789abcdef", &key), "not the id of this root"),
        ("a root's name", request(&td(), "root-0123456789abcdef", &key), "not one of a tier"),
        ("a name of capitals", request(&td(), "tier-0123456789ABCDEF", &key), "not one of a tier"),
        ("a leaf's", leaf, "not the id of this root"),
        ("another curve", short, "not on P-384"),
        ("more after it", pem("CERTIFICATE REQUEST", &forged), "bytes follow the request"),
    ] {
        fs::write(&file, text).unwrap();
        let why = root.read(&file).err().unwrap().to_string();
        assert!(why.contains(says) && why.contains("request"), "{what}: {why}");
    }
    // No input panics, and none that was changed proves its key.
    let der = profile::tier_request(&td(), "tier-0123456789abcdef", &key).unwrap();
    for at in 0..der.len() {
        for bits in [1, 0x80, 0xff] {
            let mut changed = der.clone();
            changed[at] ^= bits;
            assert!(csr::tier(&changed, &td()).is_err(), "{at}");
        }
        assert!(csr::tier(&der[..at], &td()).is_err());
    }
    fs::write(&file, &good).unwrap();
    assert_eq!(root.read(&file).unwrap().label, "tier-0123456789abcdef");
}

#[test]
fn another_secret_opens_nothing() {
    let (home, vault) = Home::offline();
    let secret = vault.dir.path().join("other");
    keys::write_private(&secret, "fedcba9876543210".repeat(4).as_bytes()).unwrap();
    let seal = Seal::read(&crate::keys::Source::KeyFile(secret)).unwrap();
    let request = home.request_tier(true);
    let file = vault.dir.path().join("t.csr");
    fs::write(&file, pem("CERTIFICATE REQUEST", &request.csr)).unwrap();
    let mut root = OfflineRoot::open(&vault.path(), seal, start()).unwrap();
    let asked = root.read(&file).unwrap();
    let why = root.sign(&asked, 365, start()).unwrap_err().to_string();
    assert!(why.contains("another secret"), "{why}");
    drop(root);
    assert_eq!(vault.open(start()).unwrap().signed(), 1, "nothing was noted");
}

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};

use super::*;

#[test]
fn signatures_of_two_numbers_become_der() {
    let pairs: [(&[u8], Option<&[u8]>); 8] = [
        (&[0, 1, 0, 2], Some(&[0x30, 6, 2, 1, 1, 2, 1, 2])),
        (&[0x80, 0, 0x7f, 0xff], Some(&[0x30, 9, 2, 3, 0, 0x80, 0, 2, 2, 0x7f, 0xff])),
        (&[1, 1], Some(&[0x30, 6, 2, 1, 1, 2, 1, 1])),
        (&[], None),
        (&[1], None),
        (&[1, 2, 3], None),
        (&[0, 0, 0, 1], None),
        (&[1; 134], None),
    ];
    for (raw, der) in pairs {
        assert_eq!(der_signature(raw).as_deref(), der, "{raw:?}");
    }
    // As a library does it, whatever the first bytes are.
    let rng = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &rng).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, pkcs8.as_ref()).unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P384_SHA384_ASN1, key.public_key().as_ref());
    for round in 0..300_u32 {
        let message = round.to_be_bytes();
        let raw = key.sign(&rng, &message).unwrap();
        public.verify(&message, &der_signature(raw.as_ref()).unwrap()).unwrap();
    }
}

#[test]
fn a_module_that_is_none_is_refused_with_its_path() {
    let td = TrustDomain::parse("demo.postern").unwrap();
    let open = |module: &str| {
        let pin = PinSource::Environment("POSTERN_TEST_NO_PIN".to_owned());
        let config = TokenConfig { module: module.into(), token: "mesh".to_owned(), pin, issuing: false };
        TokenKeys::open(&config, &td).err().expect("refused").to_string()
    };
    assert!(open("/nowhere/module.so").contains("/nowhere/module.so: cannot be loaded"));
    assert!(open("module.so").contains("whole path"));
}

//! Signatures on certificates, each verified once.
//!
//! Every chain ends in the same one or two signatures: the root's on the issuing CA, with P-384 the dearest of all. Whether a
//! signature fits a key and a message never changes, so one that did is remembered by its digest. Only this is: dates, names,
//! constraints, roots, taint and denials are asked about each time.

use std::fmt;

use aws_lc_rs::digest;
use parking_lot::{Mutex, const_mutex};
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};
use webpki::aws_lc_rs as algorithms;

/// Those a certificate may be signed with. RSA is left out on purpose: no profile of ours has it, and each algorithm is one
/// more way in.
pub(super) static SIGNATURES: &[&dyn SignatureVerificationAlgorithm] =
    &[&P256_SHA256, &P256_SHA384, &P384_SHA256, &P384_SHA384, &ED25519];

static P256_SHA256: Remembering = Remembering { inner: algorithms::ECDSA_P256_SHA256, good: &GOOD };
static P256_SHA384: Remembering = Remembering { inner: algorithms::ECDSA_P256_SHA384, good: &GOOD };
static P384_SHA256: Remembering = Remembering { inner: algorithms::ECDSA_P384_SHA256, good: &GOOD };
static P384_SHA384: Remembering = Remembering { inner: algorithms::ECDSA_P384_SHA384, good: &GOOD };
static ED25519: Remembering = Remembering { inner: algorithms::ED25519, good: &GOOD };

static GOOD: Good = Good::new();

/// Sets of two: 16 KiB for 512 signatures. A mesh has a handful above its leaves; the rest is for peers that come again.
const SETS: usize = 256;

/// Digests of what was verified.
struct Good(Mutex<[[Digest; 2]; SETS]>);

type Digest = [u8; 32];

impl Good {
    const fn new() -> Self {
        // No input that has this digest is known to anybody.
        Self(const_mutex([[[0; 32]; 2]; SETS]))
    }

    fn knows(&self, digest: &Digest) -> bool {
        let mut sets = self.0.lock();
        let set = &mut sets[usize::from(digest[0])];
        if set[1] == *digest {
            // What is asked for often outlives what comes once.
            set.swap(0, 1);
        }
        set[0] == *digest
    }

    fn remember(&self, digest: Digest) {
        let mut sets = self.0.lock();
        let set = &mut sets[usize::from(digest[0])];
        if set[0] != digest {
            *set = [digest, set[0]];
        }
    }
}

/// An algorithm that remembers what it found good.
struct Remembering {
    inner: &'static dyn SignatureVerificationAlgorithm,
    good: &'static Good,
}

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let mut context = digest::Context::new(&digest::SHA256);
        let (key_kind, kind) = (self.inner.public_key_alg_id(), self.inner.signature_alg_id());
        // With their lengths, so that no two inputs share their bytes.
        for part in [key_kind.as_ref(), kind.as_ref(), public_key, message, signature] {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        let digest: Digest = context.finish().as_ref().try_into().map_err(|_| InvalidSignature)?;
        if self.good.knows(&digest) {
            return Ok(());
        }
        self.inner.verify_signature(public_key, message, signature)?;
        self.good.remember(digest);
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.inner.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.inner.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.inner.fips()
    }
}

impl fmt::Debug for Remembering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Finds good whatever does not begin with "bad", and counts.
    #[derive(Debug)]
    struct Counting(AtomicUsize, AlgorithmIdentifier);

    impl SignatureVerificationAlgorithm for Counting {
        fn verify_signature(&self, _: &[u8], _: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if signature.starts_with(b"bad") { Err(InvalidSignature) } else { Ok(()) }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            self.1
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            self.1
        }
    }

    fn counting(kind: &'static [u8]) -> &'static Counting {
        Box::leak(Box::new(Counting(AtomicUsize::new(0), AlgorithmIdentifier::from_slice(kind))))
    }

    #[test]
    fn what_was_good_is_asked_once_and_whatever_differs_is_asked_anew() {
        let (good, inner): (&'static Good, _) = (Box::leak(Box::new(Good::new())), counting(b"kind"));
        let one = Remembering { inner, good };
        let asked = || inner.0.swap(0, Ordering::Relaxed);
        for _ in 0..3 {
            one.verify_signature(b"key", b"message", b"signature").expect("it is good");
        }
        assert_eq!(asked(), 1);
        for (key, message, signature) in [
            (&b"keym"[..], &b"essage"[..], &b"signature"[..]),
            (b"key", b"messages", b"ignature"),
            (b"key", b"", b"messagesignature"),
            (b"kez", b"message", b"signature"),
            (b"key", b"massage", b"signature"),
            (b"key", b"message", b"signaturf"),
            (b"key", b"message", b""),
        ] {
            one.verify_signature(key, message, signature).expect("it is good");
            assert_eq!(asked(), 1, "{key:?} {message:?} {signature:?}");
        }
        for _ in 0..3 {
            one.verify_signature(b"key", b"message", b"bad").expect_err("it is bad");
            assert_eq!(asked(), 1, "what was bad is not remembered");
        }
        let other = counting(b"another kind");
        let another = Remembering { inner: other, good };
        another.verify_signature(b"key", b"message", b"signature").expect("it is good");
        assert_eq!(other.0.load(Ordering::Relaxed), 1, "another algorithm's answer counts for nothing");
    }

    #[test]
    fn what_is_asked_for_often_outlives_whatever_comes_once() {
        let (good, inner): (&'static Good, _) = (Box::leak(Box::new(Good::new())), counting(b"kind"));
        let one = Remembering { inner, good };
        for n in 0..100_000_u32 {
            one.verify_signature(b"root", b"issuing CA", b"signature").expect("it is good");
            one.verify_signature(b"issuing CA", &n.to_be_bytes(), b"signature").expect("it is good");
        }
        let again = inner.0.load(Ordering::Relaxed) - 100_000;
        assert!(again < 10, "verified {again} times");
    }

    #[test]
    fn real_signatures_are_verified_before_they_are_remembered() {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("keys can be made");
        let signature = rcgen::SigningKey::sign(&key, b"message").expect("it signs");
        let public = rcgen::PublicKeyData::der_bytes(&key);
        for _ in 0..2 {
            P384_SHA384.verify_signature(public, b"message", &signature).expect("it is good");
            P384_SHA384.verify_signature(public, b"massage", &signature).expect_err("it is another's");
            P384_SHA256.verify_signature(public, b"message", &signature).expect_err("by another algorithm");
        }
    }
}

//! One key: how it is made, what it is named by, and how it signs.

use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_svid::jwt;
use rcgen::{PublicKeyData as _, SigningKey as _};
use serde_json::{Map, Value, json};

use super::{JwtAuthorityError, LABEL};
use crate::keys::{Key, KeyStore};
use crate::profile::{self, ISSUING_KEY};
use crate::store::{JwtKey, JwtState};

/// Bytes of a coordinate, and of half a signature, on P-256.
const HALF: usize = 32;

/// What signs.
pub(super) struct Signer {
    pub(super) label: String,
    key_id: String,
    key: Key,
}

/// A new key, its private half stored and its row not yet.
pub(super) fn make(
    keys: &dyn KeyStore,
    state: JwtState,
    now: SystemTime,
) -> Result<JwtKey, JwtAuthorityError> {
    let label = format!("{LABEL}{}", profile::ca_label()?);
    let key = keys.create(&label, ISSUING_KEY)?;
    let point = key.der_bytes().to_vec();
    let key_id = thumbprint(&point).ok_or(JwtAuthorityError::Damaged("a new JWT key is not one of P-256"))?;
    Ok(JwtKey { label, key_id, point, state, made: now, since: now })
}

/// The key's thumbprint (RFC 7638): nobody can choose it, and two keys never share one.
fn thumbprint(point: &[u8]) -> Option<String> {
    let point = point.strip_prefix(&[4]).filter(|point| point.len() == 2 * HALF)?;
    let (x, y) = point.split_at(HALF);
    let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#, encoded(x), encoded(y));
    Some(encoded(digest(&SHA256, canonical.as_bytes()).as_ref()))
}

impl JwtKey {
    /// As it stands in the bundle.
    pub(crate) fn public(&self) -> Result<jwt::JwtKey, jwt::JwtKeysError> {
        jwt::JwtKey::p256(self.key_id.clone(), &self.point)
    }
}

impl Signer {
    pub(super) fn new(row: &JwtKey, key: Key) -> Result<Self, JwtAuthorityError> {
        if key.der_bytes() != row.point || thumbprint(&row.point).as_ref() != Some(&row.key_id) {
            return Err(JwtAuthorityError::KeyMismatch(row.label.clone()));
        }
        Ok(Self { label: row.label.clone(), key_id: row.key_id.clone(), key })
    }

    pub(super) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The token with these claims. `None` if the key refuses.
    pub(super) fn sign(&self, claims: Map<String, Value>) -> Option<String> {
        let header = json!({"alg": "ES256", "kid": self.key_id, "typ": "JWT"}).to_string();
        let message = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(Value::Object(claims).to_string())
        );
        let signature = fixed(&self.key.sign(message.as_bytes()).ok()?)?;
        Some(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// ECDSA signatures of X.509 are a SEQUENCE of two INTEGERs (RFC 3279, 2.2.3); those of JWS two numbers of fixed length
/// (RFC 7518, 3.4).
fn fixed(der: &[u8]) -> Option<[u8; 2 * HALF]> {
    let Some((&[0x30, length], rest)) = der.split_first_chunk() else { return None };
    if usize::from(length) != rest.len() || length >= 0x80 {
        return None;
    }
    let (r, rest) = integer(rest)?;
    let (s, rest) = integer(rest)?;
    let mut signature = [0; 2 * HALF];
    signature[..HALF].copy_from_slice(&r);
    signature[HALF..].copy_from_slice(&s);
    rest.is_empty().then_some(signature)
}

fn integer(der: &[u8]) -> Option<([u8; HALF], &[u8])> {
    let Some((&[0x02, length], rest)) = der.split_first_chunk() else { return None };
    let (number, rest) = rest.split_at_checked(length.into())?;
    // A zero in front keeps a large number positive.
    let number = number.strip_prefix(&[0]).unwrap_or(number);
    let begin = HALF.checked_sub(number.len())?;
    let mut padded = [0; HALF];
    padded[begin..].copy_from_slice(number);
    Some((padded, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_get_their_fixed_length() {
        let number = |bytes: &[u8]| [&[2, u8::try_from(bytes.len()).unwrap()], bytes].concat();
        let der = |r: &[u8], s: &[u8]| {
            let content = [number(r), number(s)].concat();
            [&[0x30, u8::try_from(content.len()).unwrap()], &content[..]].concat()
        };
        let long = [&[0][..], &[0xff; HALF]].concat();
        let signature = fixed(&der(&long, &[5])).unwrap();
        assert_eq!(
            (&signature[..HALF], signature[HALF..].iter().map(|b| u32::from(*b)).sum::<u32>()),
            (&[0xff; HALF][..], 5)
        );
        assert_eq!(signature[2 * HALF - 1], 5);
        let good = der(&[1], &[2]);
        for bad in [
            der(&[1; HALF + 1], &[1]),
            der(&[1], &[1; 40]),
            good[..good.len() - 1].to_vec(),
            [&good[..], &[0]].concat(),
            vec![0x30, 0x80],
            vec![],
        ] {
            assert_eq!(fixed(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_thumbprint_is_that_of_rfc_7638() {
        // The key of RFC 7515, A.3; the digest as Python's hashlib makes it.
        let x = URL_SAFE_NO_PAD.decode("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU").unwrap();
        let y = URL_SAFE_NO_PAD.decode("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0").unwrap();
        let point = [&[4][..], &x, &y].concat();
        assert_eq!(thumbprint(&point).as_deref(), Some("oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U"));
        assert_eq!(thumbprint(&point[1..]), None);
    }
}

//! Keys in a PKCS#11 token: an HSM, a smart card, a TPM behind its module. They are made in it and never leave it; what comes
//! out are signatures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use aws_lc_rs::digest::{SHA256, SHA384, digest};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use parking_lot::Mutex;
use postern_svid::TrustDomain;
use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData, SignatureAlgorithm, SigningKey};

use super::source::PinSource;
use super::{Key, KeyError, KeyStore};

/// `1.2.840.10045.3.1.7` and `1.3.132.0.34` in DER.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

/// A module is loaded and initialized once in a process, whoever uses it: its state is the process's.
static MODULES: LazyLock<Mutex<BTreeMap<PathBuf, Pkcs11>>> = LazyLock::new(Mutex::default);

/// Which token, and how to open it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenConfig {
    /// The module, a shared library.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// Where its user PIN is.
    pub pin: PinSource,
    /// Whether issuing CAs' keys are in it too, and not only those above them.
    pub issuing: bool,
}

/// Keys in a token, under labels that begin with the trust domain's.
pub(super) struct TokenKeys {
    token: Arc<Token>,
    prefix: String,
}

/// A token that is open.
struct Token {
    config: TokenConfig,
    module: Pkcs11,
    slot: Slot,
    /// A session serves one caller at a time; `None` after one was lost.
    session: Mutex<Option<Session>>,
}

/// A key that stays where it is.
struct TokenKey {
    token: Arc<Token>,
    label: String,
    algorithm: &'static SignatureAlgorithm,
    point: Vec<u8>,
}

impl TokenKeys {
    /// Opens the token and logs in.
    pub(super) fn open(config: &TokenConfig, td: &TrustDomain) -> Result<Self, KeyError> {
        let module = module(&config.module)?;
        let refused = |what: String| refused(config, what);
        let slots = module.get_slots_with_initialized_token().map_err(|error| refused(error.to_string()))?;
        let mut found = Vec::new();
        let mut labels = Vec::new();
        for slot in slots {
            let info = module.get_token_info(slot).map_err(|error| refused(error.to_string()))?;
            labels.push(info.label().to_owned());
            if info.label() == config.token {
                found.push(slot);
            }
        }
        let slot = match found.as_slice() {
            [one] => *one,
            [] => {
                return Err(refused(format!(
                    "no token has this label; the module shows: {}",
                    labels.join(", ")
                )));
            }
            _ => return Err(refused("several tokens have this label; give each its own".to_owned())),
        };
        let token = Arc::new(Token { config: config.clone(), module, slot, session: Mutex::new(None) });
        // A wrong PIN shows at the start, and is tried once: tokens lock themselves after a few.
        *token.session.lock() = Some(token.log_in()?);
        Ok(Self { token, prefix: format!("postern/{td}/") })
    }

    fn label(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

impl KeyStore for TokenKeys {
    fn create(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Key, KeyError> {
        let label = self.label(name);
        let curve = curve(algorithm)
            .ok_or_else(|| refused(&self.token.config, format!("{label}: no key on P-256 or P-384")))?;
        let (point, sealed) = self.token.with(|session| {
            if !session.find_objects(&private(&label))?.is_empty() {
                return Ok((Vec::new(), false));
            }
            let id = Attribute::Id(label.clone().into_bytes());
            let public = [
                Attribute::Token(true),
                Attribute::Private(false),
                Attribute::KeyType(KeyType::EC),
                Attribute::Verify(true),
                Attribute::EcParams(curve.to_vec()),
                Attribute::Label(label.clone().into_bytes()),
                id.clone(),
            ];
            let template = [
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Sign(true),
                Attribute::Label(label.clone().into_bytes()),
                id,
            ];
            let (public, key) = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &template)?;
            let is_kept = never_leaves(session, key, true)?;
            if !is_kept {
                session.destroy_object(key)?;
                session.destroy_object(public)?;
            }
            Ok((point(session, public)?, is_kept))
        })?;
        if point.is_empty() {
            return Err(KeyError::Exists(PathBuf::from(format!(
                "{}: {label}",
                self.token.config.module.display()
            ))));
        }
        if !sealed {
            let what = format!("{label}: the token made a key that can leave it, which was removed again");
            return Err(refused(&self.token.config, what));
        }
        self.token.key(label, point, algorithm)
    }

    fn import(
        &self,
        name: &str,
        _pkcs8: &[u8],
        _algorithm: &'static SignatureAlgorithm,
    ) -> Result<Key, KeyError> {
        let what = format!(
            "{name}: keys are made in the token and never brought into it: that one has been elsewhere. Let the CA make its root there"
        );
        Err(refused(&self.token.config, what))
    }

    fn load(&self, name: &str, algorithm: &'static SignatureAlgorithm) -> Result<Key, KeyError> {
        let label = self.label(name);
        let (found, is_kept, point) = self.token.with(|session| {
            let keys = session.find_objects(&private(&label))?;
            let publics = session.find_objects(&[
                Attribute::Class(ObjectClass::PUBLIC_KEY),
                Attribute::Label(label.clone().into_bytes()),
            ])?;
            match (keys.as_slice(), publics.as_slice()) {
                ([key], [public]) => Ok((1, never_leaves(session, *key, false)?, point(session, *public)?)),
                _ => Ok((keys.len(), false, Vec::new())),
            }
        })?;
        if point.is_empty() {
            let what = if found == 0 {
                format!("{label}: the token has no such key; is it the token that this CA began with?")
            } else {
                format!("{label}: not exactly one key pair has this label")
            };
            return Err(refused(&self.token.config, what));
        }
        if !is_kept {
            let what = format!(
                "{label}: can leave the token (CKA_EXTRACTABLE, or not CKA_SENSITIVE); it is not used"
            );
            return Err(refused(&self.token.config, what));
        }
        self.token.key(label, point, algorithm)
    }

    fn remove(&self, name: &str) -> Result<(), KeyError> {
        let label = self.label(name);
        self.token.with(|session| {
            for object in session.find_objects(&[Attribute::Label(label.clone().into_bytes())])? {
                session.destroy_object(object)?;
            }
            Ok(())
        })
    }

    fn names(&self) -> Result<Vec<String>, KeyError> {
        let labels = self.token.with(|session| {
            let mut labels = Vec::new();
            for key in session.find_objects(&[Attribute::Class(ObjectClass::PRIVATE_KEY)])? {
                for attribute in session.get_attributes(key, &[AttributeType::Label])? {
                    if let Attribute::Label(label) = attribute {
                        labels.push(label);
                    }
                }
            }
            Ok(labels)
        })?;
        let ours = labels
            .into_iter()
            .filter_map(|label| String::from_utf8(label).ok()?.strip_prefix(&self.prefix).map(str::to_owned));
        let mut names: Vec<_> = ours.collect();
        names.sort();
        Ok(names)
    }
}

impl Token {
    fn log_in(&self) -> Result<Session, KeyError> {
        let pin = self.config.pin.read().map_err(|why| refused(&self.config, why))?;
        // The library's own type overwrites it, too.
        let pin = AuthPin::new(pin.as_str().into());
        let session = self.module.open_rw_session(self.slot);
        let session = session.map_err(|error| refused(&self.config, error.to_string()))?;
        match session.login(UserType::User, Some(&pin)) {
            // All sessions of a process share the log-in.
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(Error::Pkcs11(RvError::PinIncorrect | RvError::PinLenRange | RvError::PinInvalid, _)) => {
                let pin = &self.config.pin;
                Err(refused(
                    &self.config,
                    format!(
                        "the PIN in {pin} is not the token's user PIN; it is tried once at each start, for tokens lock themselves"
                    ),
                ))
            }
            Err(Error::Pkcs11(RvError::PinLocked, _)) => Err(refused(
                &self.config,
                "the user PIN is locked; its security officer resets it".to_owned(),
            )),
            Err(error) => Err(refused(&self.config, error.to_string())),
        }
    }

    /// Works in the session. One that was lost, with a token that went away and came back, is opened anew, once.
    fn with<T>(&self, work: impl Fn(&Session) -> Result<T, Error>) -> Result<T, KeyError> {
        let mut session = self.session.lock();
        for is_last in [false, true] {
            if session.is_none() {
                *session = Some(self.log_in()?);
            }
            let Some(open) = session.as_ref() else { break };
            match work(open) {
                Ok(done) => return Ok(done),
                Err(error) if !is_last && is_lost(&error) => *session = None,
                Err(error) => return Err(refused(&self.config, error.to_string())),
            }
        }
        Err(refused(&self.config, "the session with the token was lost".to_owned()))
    }

    fn key(
        self: &Arc<Self>,
        label: String,
        point: Vec<u8>,
        algorithm: &'static SignatureAlgorithm,
    ) -> Result<Key, KeyError> {
        let length = if algorithm == &PKCS_ECDSA_P256_SHA256 { 65 } else { 97 };
        if curve(algorithm).is_none() || point.len() != length || point[0] != 4 {
            let what = format!("{label}: not a key on the curve that its certificate names");
            return Err(refused(&self.config, what));
        }
        Ok(Key::new(TokenKey { token: self.clone(), label, algorithm, point }))
    }
}

impl PublicKeyData for TokenKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl SigningKey for TokenKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let algorithm = if self.algorithm == &PKCS_ECDSA_P256_SHA256 { &SHA256 } else { &SHA384 };
        let hash = digest(algorithm, message);
        let signed = self.token.with(|session| {
            // Handles do not outlive a session.
            let key = session.find_objects(&private(&self.label))?.into_iter().next();
            let key =
                key.ok_or(Error::Pkcs11(RvError::KeyHandleInvalid, cryptoki::context::Function::Sign))?;
            session.sign(&Mechanism::Ecdsa, key, hash.as_ref())
        });
        let signature = signed.map_err(|error| {
            tracing::error!(%error, key = self.label, "the token did not sign");
            rcgen::Error::RemoteKeyError
        })?;
        der_signature(&signature).ok_or(rcgen::Error::RemoteKeyError)
    }
}

fn module(path: &Path) -> Result<Pkcs11, KeyError> {
    let mut modules = MODULES.lock();
    if let Some(module) = modules.get(path) {
        return Ok(module.clone());
    }
    let refused = |what: String| KeyError::Token { place: path.display().to_string(), what };
    if !path.is_absolute() {
        return Err(refused("the module is named by its whole path, not looked for".to_owned()));
    }
    let module = Pkcs11::new(path).map_err(|error| refused(format!("cannot be loaded: {error}")))?;
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(refused(format!("cannot be initialized: {error}"))),
    }
    modules.insert(path.to_owned(), module.clone());
    Ok(module)
}

fn private(label: &str) -> [Attribute; 2] {
    [Attribute::Class(ObjectClass::PRIVATE_KEY), Attribute::Label(label.as_bytes().to_vec())]
}

/// Whether a private key is one that the token gives to nobody; of a new one also that it never was another.
fn never_leaves(session: &Session, key: ObjectHandle, is_new: bool) -> Result<bool, Error> {
    let asked = [
        AttributeType::Sensitive,
        AttributeType::Extractable,
        AttributeType::AlwaysSensitive,
        AttributeType::NeverExtractable,
    ];
    let found = session.get_attributes(key, &asked)?;
    let kept = found.contains(&Attribute::Sensitive(true)) && found.contains(&Attribute::Extractable(false));
    let ever = found.contains(&Attribute::AlwaysSensitive(true))
        && found.contains(&Attribute::NeverExtractable(true));
    Ok(kept && (ever || !is_new))
}

/// The public key: an OCTET STRING with the uncompressed point.
fn point(session: &Session, public: ObjectHandle) -> Result<Vec<u8>, Error> {
    let found = session.get_attributes(public, &[AttributeType::EcPoint])?;
    let point = found.into_iter().find_map(|attribute| match attribute {
        Attribute::EcPoint(der) => Some(der),
        _ => None,
    });
    let point = point.unwrap_or_default();
    // Some modules leave the OCTET STRING out.
    let bare = match point.as_slice() {
        [4, length, rest @ ..] if usize::from(*length) == rest.len() => rest,
        other => other,
    };
    Ok(bare.to_vec())
}

fn curve(algorithm: &'static SignatureAlgorithm) -> Option<&'static [u8]> {
    if algorithm == &PKCS_ECDSA_P256_SHA256 {
        Some(&P256)
    } else if algorithm == &PKCS_ECDSA_P384_SHA384 {
        Some(&P384)
    } else {
        None
    }
}

/// From the two numbers in a row that a token gives to the SEQUENCE of INTEGERs that X.509 has.
fn der_signature(raw: &[u8]) -> Option<Vec<u8>> {
    if raw.is_empty() || !raw.len().is_multiple_of(2) || raw.len() > 132 {
        return None;
    }
    let mut body = Vec::with_capacity(raw.len() + 8);
    for number in raw.chunks_exact(raw.len() / 2) {
        let start = number.iter().position(|byte| *byte != 0)?;
        let number = &number[start..];
        let sign = usize::from(number[0] & 0x80 != 0);
        body.extend([2, u8::try_from(number.len() + sign).ok()?]);
        body.extend(std::iter::repeat_n(0, sign));
        body.extend_from_slice(number);
    }
    let length = u8::try_from(body.len()).ok().filter(|length| *length < 128)?;
    Some([&[0x30, length], body.as_slice()].concat())
}

fn is_lost(error: &Error) -> bool {
    use RvError::{
        DeviceError, DeviceRemoved, ObjectHandleInvalid, SessionClosed, SessionHandleInvalid,
        TokenNotPresent, UserNotLoggedIn,
    };
    matches!(
        error,
        Error::Pkcs11(
            DeviceError
                | DeviceRemoved
                | ObjectHandleInvalid
                | SessionClosed
                | SessionHandleInvalid
                | TokenNotPresent
                | UserNotLoggedIn,
            _
        )
    )
}

fn refused(config: &TokenConfig, what: String) -> KeyError {
    KeyError::Token { place: format!("{}: token {}", config.module.display(), config.token), what }
}

#[cfg(test)]
mod tests;

//! `control.yaml`: text becomes types here, once, and every mistake is shown with its place.

mod attestation;
mod federation;
mod jwt;
mod keys;
mod replica;
mod store;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_ca::authority::Mode;
use postern_ca::issue::{MAX_TTL, MIN_TEST_TTL, MIN_TTL};
use postern_policy::yaml::{self, Span, Spanned};
use postern_policy::{Diagnostics, SourceFile};
use postern_svid::TrustDomain;
use serde::Deserialize;

use crate::registrations::Terms;

pub use attestation::{Attestation, Roots, TokenIssuer};
pub use federation::{BundleEndpoint, ClientProfile, Federation, Foreign, ServerProfile};
pub use jwt::Jwt;
pub use keys::Keys;
pub use postern_ca_etcd::Config as Etcd;

/// Where the health endpoint listens unless told otherwise.
const HEALTH: ([u8; 4], u16) = ([127, 0, 0, 1], 24191);
/// Where the mesh admin endpoint listens unless told otherwise.
const MESH_ADMIN: ([u8; 4], u16) = ([127, 0, 0, 1], 24192);
/// Life of a leaf unless told otherwise.
const TTL: Duration = Duration::from_secs(3_600);
/// A configuration file longer than this is none.
const MAX_FILE: u64 = 1 << 20;

/// The control plane's configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Directory of database, keys and trust bundle; made with mode 0700.
    pub state_dir: PathBuf,
    /// The identity API.
    pub listen: SocketAddr,
    /// The identity API for processes of this machine: a Unix socket.
    pub listen_unix: Option<PathBuf>,
    /// `/live`, `/ready`, `/metrics`.
    pub health: SocketAddr,
    /// The mesh admin endpoint; loopback only.
    pub mesh_admin: SocketAddr,
    /// How the CA's keys rest.
    pub keys: Keys,
    /// The name of this replica, where several share one trust.
    pub replica: Option<String>,
    /// Where replicas share what they share; without it the control plane is one process.
    pub store: Option<Etcd>,
    /// Life of a leaf.
    pub ttl: Duration,
    /// Whether and how JWT-SVIDs are issued.
    pub jwt: Option<Jwt>,
    /// Trust domains beside our own.
    pub federation: Federation,
    /// Allows lives under five minutes.
    pub test: bool,
    /// Who is believed, and where it is written what they are granted.
    pub attestation: Attestation,
    /// Whether its root is made elsewhere, so that none is made here.
    pub offline_root: bool,
    /// Who says when the next root is made, activated and the old one removed.
    pub root_rotation: Mode,
    /// What is logged.
    pub log: Log,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// From which level on.
    #[serde(default)]
    pub level: LogLevel,
    /// As text or as JSON.
    #[serde(default)]
    pub format: LogFormat,
}

/// Levels of log lines.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "their names say it")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

/// Formats of log lines.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object per line.
    Json,
}

impl Config {
    /// Everything at its default but what has none.
    pub fn new(trust_domain: TrustDomain, state_dir: PathBuf, listen: SocketAddr) -> Self {
        Self {
            trust_domain,
            state_dir,
            listen,
            listen_unix: None,
            health: HEALTH.into(),
            mesh_admin: MESH_ADMIN.into(),
            keys: Keys::default(),
            replica: None,
            store: None,
            ttl: TTL,
            jwt: None,
            federation: Federation::default(),
            test: false,
            attestation: Attestation::default(),
            offline_root: false,
            root_rotation: Mode::Automatic,
            log: Log::default(),
        }
    }

    /// Reads a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let io = |error| ConfigError::Read(path.to_owned(), error);
        let found = std::fs::metadata(path).map_err(io)?;
        if !found.is_file() || found.len() > MAX_FILE {
            return Err(ConfigError::NotAFile(path.to_owned()));
        }
        let text = std::fs::read(path).map_err(io)?;
        Ok(Self::parse(&SourceFile { name: path.display().to_string(), text })?)
    }

    /// Parses the text of a file. All mistakes are reported at once, as far as the text can be read.
    pub fn parse(file: &SourceFile) -> Result<Self, Diagnostics> {
        let raw: Raw = yaml::parse(file)?;
        let mut found = Diagnostics::new();

        let trust_domain = TrustDomain::parse(&raw.trust_domain.value)
            .map_err(|e| found.push(yaml::at(file, &raw.trust_domain, format!("trustDomain: {e}"))));
        let mut address = |field: Option<&Spanned<String>>, name, default| match field {
            None => Ok(default),
            Some(text) => text.value.parse::<SocketAddr>().map_err(|_| {
                let message = format!("{name}: not an address with a port, such as 127.0.0.1:24150");
                found.push(yaml::at(file, text, message));
            }),
        };
        let listen = address(Some(&raw.listen.address), "listen", HEALTH.into());
        let health = address(raw.health.as_ref().map(|l| &l.address), "health", HEALTH.into());
        let admin = raw.mesh_admin.as_ref().map(|l| &l.address);
        let mesh_admin = address(admin, "meshAdmin", MESH_ADMIN.into());
        if let (Some(text), Ok(address)) = (admin, mesh_admin)
            && !is_loopback(address)
        {
            found.push(yaml::at(file, text, NOT_LOOPBACK).with_help(
                "use a loopback address such as 127.0.0.1:24192, and ssh -L or kubectl port-forward to reach it",
            ));
        }
        let ttl = raw.svid.as_ref().map_or(TTL, |svid| svid.ttl.value.0);
        if let Some(message) = refuse_ttl(ttl, raw.test) {
            let place = raw.svid.as_ref().map(|svid| &svid.ttl);
            // Without the field the default stands, which is never refused.
            if let Some(place) = place {
                found.push(yaml::at(file, place, message));
            }
        }
        let jwt = Jwt::of(raw.jwt, raw.test, file, &mut found);
        let federation = Federation::of(raw.federation, trust_domain.as_ref().ok(), file, &mut found);
        if let Some(path) = raw.listen_unix.as_ref().filter(|path| path.value.is_empty()) {
            found.push(yaml::at(file, path, "listenUnix: name a file"));
        }
        if raw.state_dir.value.is_empty() {
            found.push(yaml::at(file, &raw.state_dir, "stateDir: name a directory"));
        }
        let keys = Keys::of(raw.keys, file, &mut found);
        let td = trust_domain.as_ref().ok();
        let is_replica = raw.replica.is_some();
        let replica = replica::of(raw.replica, raw.store.is_some(), &keys, file, &mut found);
        let store = store::of(raw.store, td, is_replica, file, &mut found);
        let attestation =
            attestation::check(file, &raw.attestation, raw.registrations.as_ref(), td, &mut found);
        match (trust_domain, listen, health, mesh_admin) {
            (Ok(trust_domain), Ok(listen), Ok(health), Ok(mesh_admin)) if found.is_empty() => Ok(Self {
                trust_domain,
                state_dir: PathBuf::from(raw.state_dir.value),
                listen,
                listen_unix: raw.listen_unix.map(|path| PathBuf::from(path.value)),
                health,
                mesh_admin,
                keys,
                replica,
                store,
                ttl,
                jwt,
                federation,
                test: raw.test,
                attestation,
                offline_root: raw.root.is_some_and(|root| root.offline),
                root_rotation: match raw.rotation.map(|rotation| rotation.root) {
                    None | Some(By::Automatic) => Mode::Automatic,
                    Some(By::Operator) => Mode::ByOperator,
                },
                log: raw.log,
            }),
            _ => Err(found),
        }
    }

    /// What registrations are checked under.
    pub fn registration_terms(&self) -> Terms {
        let least = if self.test { MIN_TEST_TTL } else { MIN_TTL };
        Terms { trust_domain: self.trust_domain.clone(), names: Some(self.attestation.names()), least }
    }

    /// Checks what a configuration that was put together by hand may get wrong.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !is_loopback(self.mesh_admin) {
            return Err(NOT_LOOPBACK.to_owned());
        }
        match refuse_ttl(self.ttl, self.test) {
            Some(message) => Err(message),
            None => self.jwt.as_ref().map_or(Ok(()), |jwt| jwt.check(self.test)),
        }
    }
}

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The content is wrong; the text has file, line and column of each mistake.
    #[error("{0}")]
    Content(Diagnostics),
    /// Not a regular file, or too large.
    #[error("{}: not a file of at most 1 MiB", .0.display())]
    NotAFile(PathBuf),
    /// It cannot be read.
    #[error("{path}: {error}", path = .0.display(), error = .1)]
    Read(PathBuf, #[source] std::io::Error),
}

impl From<Diagnostics> for ConfigError {
    fn from(found: Diagnostics) -> Self {
        Self::Content(found)
    }
}

const NOT_LOOPBACK: &str = "meshAdmin: not a loopback address. It tells who holds which certificate and has no authorization yet, so only this machine may ask";

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Raw {
    trust_domain: Spanned<String>,
    state_dir: Spanned<String>,
    listen: Listener,
    listen_unix: Option<Spanned<String>>,
    health: Option<Listener>,
    mesh_admin: Option<Listener>,
    keys: Option<keys::Raw>,
    replica: Option<Spanned<String>>,
    store: Option<store::Raw>,
    svid: Option<Svid>,
    jwt: Option<jwt::Raw>,
    federation: Option<federation::Raw>,
    #[serde(default)]
    test: bool,
    root: Option<Root>,
    rotation: Option<Rotation>,
    #[serde(default)]
    attestation: attestation::Raw,
    registrations: Option<Spanned<String>>,
    #[serde(default)]
    log: Log,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Root {
    offline: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotation {
    root: By,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum By {
    Automatic,
    #[serde(rename = "byOperator")]
    Operator,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listener {
    address: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Svid {
    ttl: Spanned<Span>,
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn refuse_ttl(ttl: Duration, test: bool) -> Option<String> {
    if ttl.subsec_nanos() != 0 {
        return Some("svid.ttl: certificates count whole seconds".to_owned());
    }
    if ttl > MAX_TTL {
        return Some(format!(
            "svid.ttl: at most {} h: a stolen key works until then",
            MAX_TTL.as_secs() / 3_600
        ));
    }
    if ttl < MIN_TEST_TTL {
        return Some(format!("svid.ttl: at least {} s, even in tests", MIN_TEST_TTL.as_secs()));
    }
    if ttl < MIN_TTL && !test {
        return Some(format!(
            "svid.ttl: at least {} min; shorter lives leave clocks and renewals no room (test: true allows them)",
            MIN_TTL.as_secs() / 60
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "trustDomain: demo.postern
stateDir: /var/lib/postern
listen: {address: \"127.0.0.10:24150\"}
health: {address: \"127.0.0.10:24191\"}
meshAdmin: {address: \"127.0.0.10:24192\"}
svid: {ttl: 1h}
test: false
log: {level: info, format: text}
";

    fn parse(text: &str) -> Result<Config, String> {
        let file = SourceFile { name: "control.yaml".to_owned(), text: text.as_bytes().to_vec() };
        Config::parse(&file).map_err(|found| found.to_string())
    }

    #[test]
    fn the_documented_file() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.trust_domain.as_str(), "demo.postern");
        assert_eq!(config.listen, "127.0.0.10:24150".parse().unwrap());
        assert_eq!(config.ttl, Duration::from_secs(3_600));
        assert!(!config.test);
    }

    #[test]
    fn what_may_be_left_out() {
        let config = parse("trustDomain: td\nstateDir: s\nlisten: {address: \"[::1]:1\"}\n").unwrap();
        let plain =
            Config::new(TrustDomain::parse("td").unwrap(), PathBuf::from("s"), "[::1]:1".parse().unwrap());
        assert_eq!(config, plain);
    }

    #[test]
    fn mistakes_have_a_place_and_a_way_out() {
        for (from, to, place, says) in [
            ("127.0.0.10:24192", "0.0.0.0:24192", "control.yaml:5:", "loopback"),
            ("127.0.0.10:24192", "[::]:24192", "control.yaml:5:", "loopback"),
            ("127.0.0.10:24192", "10.0.0.1:24192", "control.yaml:5:", "only this machine"),
            ("127.0.0.10:24150", "localhost:24150", "control.yaml:3:", "listen"),
            ("127.0.0.10:24191", "127.0.0.10", "control.yaml:4:", "health"),
            ("ttl: 1h", "ttl: 299s", "control.yaml:6:", "test: true"),
            ("ttl: 1h", "ttl: 25h", "control.yaml:6:", "24 h"),
            ("ttl: 1h", "ttl: 3600", "control.yaml:6:", "5m"),
            ("ttl: 1h", "ttl: 301500ms", "control.yaml:6:", "whole seconds"),
            ("demo.postern", "Demo", "control.yaml:1:", "trustDomain"),
            ("test: false", "rotation: {root: never}\ntest: false", "control.yaml:7:", "byOperator"),
            ("test: false", "tset: false", "control.yaml:7:", "did you mean `test`"),
            ("level: info", "level: loud", "control.yaml:8:", "loud"),
            ("/var/lib/postern", "''", "control.yaml:2:", "stateDir"),
        ] {
            assert!(GOOD.contains(from));
            let error = parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(place) && error.contains(says), "{to}: {error}");
        }
        let short = GOOD.replace("ttl: 1h", "ttl: 20s").replace("test: false", "test: true");
        assert_eq!(parse(&short).unwrap().ttl, Duration::from_secs(20));
        assert!(parse(&short.replace("20s", "4s")).is_err());
    }

    #[test]
    fn other_trust_domains() {
        let with =
            |section: &str| parse(&format!("{GOOD}federation:\n{section}")).map(|config| config.federation);
        assert_eq!(parse(GOOD).unwrap().federation, Federation::default());
        let endpoint = |section: &str| with(section).unwrap().endpoint.unwrap();
        let spiffe = endpoint("  listen: {address: \"0.0.0.0:24152\"}\n  profile: https_spiffe\n");
        assert_eq!((spiffe.address.port(), spiffe.profile), (24152, ServerProfile::Spiffe));
        let web = "  listen: {address: \"[::]:1\"}\n  profile: https_web\n  certificate: a\n  key: b\n";
        let files = ServerProfile::Web { certificate: "a".into(), key: "b".into() };
        assert_eq!(endpoint(web).profile, files);

        let foreign = "  trustDomains:\n  - name: partner\n    url: https://partner:1/b\n    profile: https_spiffe\n    \
                       spiffeId: spiffe://partner/postern/control\n    bootstrapBundle: p.json\n";
        let read = with(foreign).unwrap();
        assert_eq!((read.endpoint, read.trust_domains.len()), (None, 1));
        let one = &read.trust_domains[0];
        assert!(matches!(&one.profile, ClientProfile::Spiffe(id) if id.path() == "/postern/control"));
        let plain = "  trustDomains:\n  - {name: partner, url: \"https://partner/b\", profile: https_web}\n";
        assert_eq!(with(plain).unwrap().trust_domains[0].profile, ClientProfile::Web(None));

        let listen = "  listen: {address: \"0.0.0.0:24152\"}\n";
        let many: String = (0..17)
            .map(|n| format!("  - {{name: td{n}, url: \"https://a/b\", profile: https_web}}\n"))
            .collect();
        for (section, place, says) in [
            (listen.to_owned(), "10:", "Name the profile"),
            (format!("{listen}  profile: https_web\n"), "10:", "needs `certificate` and `key`"),
            (format!("{listen}  profile: https_spiffe\n  key: b\n"), "12:", "control plane's own SVID"),
            (format!("{listen}  profile: https\n"), "11:", "https_web"),
            (web.replace("[::]:1", "24152"), "10:", "not an address"),
            ("  key: b\n".to_owned(), "10:", "without `listen`"),
            (foreign.replace("https://", "http://"), "12:", "https alone"),
            (foreign.replace("https://", "https://me@"), "12:", "name a user"),
            (foreign.replace("https://partner:1", ""), "12:", "https alone"),
            (foreign.replace("name: partner", "name: Partner"), "11:", "name:"),
            (plain.replace("name: partner", "name: demo.postern"), "11:", "own trust domain"),
            (foreign.replace("spiffe://partner/", "spiffe://other/"), "14:", "belong to partner"),
            (foreign.replace("    bootstrapBundle: p.json\n", ""), "14:", "needs bootstrapBundle"),
            (foreign.replace("https_spiffe", "https_web"), "14:", "proves a host name"),
            (foreign.replace("bootstrapBundle", "caFile"), "15:", "no public authority"),
            (format!("{plain}{}", &plain[16..]), "12:", "stands here twice"),
            (format!("  trustDomains:\n{many}"), "27:", "at most 16"),
            (plain.replace("profile", "profil"), "11:", "did you mean `profile`"),
        ] {
            let error = with(&section).unwrap_err();
            assert!(
                error.contains(&format!("control.yaml:{place}")) && error.contains(says),
                "{section}: {error}"
            );
        }
    }

    #[test]
    fn tokens_are_issued_where_it_is_said() {
        let with = |section: &str| parse(&format!("{GOOD}jwt: {section}\n")).map(|config| config.jwt);
        assert_eq!(parse(GOOD).unwrap().jwt, None);
        assert_eq!(with("{}").unwrap(), Some(Jwt::default()));
        assert_eq!(with("{enabled: false, ttl: 2m}").unwrap(), None);
        let issuer = Some("https://issuer.example".to_owned());
        let all = Jwt { ttl: Duration::from_secs(120), issuer };
        assert_eq!(with("{ttl: 2m, issuer: \"https://issuer.example\"}").unwrap(), Some(all));
        for (section, says) in [
            ("{ttl: 59s}", "at least 60 s"),
            ("{ttl: 61m}", "at most 60 min"),
            ("{ttl: 90500ms}", "whole seconds"),
            ("{issuer: issuer.example}", "not a URL"),
            ("{issuer: \"https://a b\"}", "not a URL"),
            ("{tll: 5m}", "did you mean `ttl`"),
            ("yes", "control.yaml:9:"),
        ] {
            let error = with(section).unwrap_err();
            assert!(error.contains(says) && error.contains("control.yaml:9:"), "{section}: {error}");
        }
    }

    #[test]
    fn a_root_that_is_made_elsewhere() {
        let with =
            |section: &str| parse(&format!("{GOOD}root: {section}\n")).map(|config| config.offline_root);
        assert!(!parse(GOOD).unwrap().offline_root);
        assert!(with("{offline: true}").unwrap());
        assert!(!with("{offline: false}").unwrap());
        for section in ["{}", "{ofline: true}", "offline"] {
            let error = with(section).unwrap_err();
            assert!(error.contains("control.yaml:9:"), "{section}: {error}");
        }
    }

    #[test]
    fn all_mistakes_at_once() {
        let both = GOOD.replace("demo.postern", "Demo").replace("127.0.0.10:24192", "0.0.0.0:1");
        let error = parse(&both).unwrap_err();
        assert!(error.contains("control.yaml:1:") && error.contains("control.yaml:5:"), "{error}");
    }
}

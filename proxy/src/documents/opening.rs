//! Breaking the glass: an operator opens a namespace to proven peers, for a while and for a reason.
//!
//! What opens is a document like any other, which the engine decides by and explains. It stands in the tier Platform, so
//! it comes before every Deny of an application; a Deny of the platform still wins. It lies in the directory of
//! documents, or over the last good set of one sidecar, whose directory may be broken.

use std::fmt::Write as _;
use std::time::{Duration, Instant, SystemTime};

use postern_policy::yaml::is_unseen;
use postern_policy::{BREAK_GLASS, MAX_OPEN, MAX_REASON, OPENED_BY, REASON, SourceFile};
use postern_svid::SpiffeId;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::history::{Moment, Set};
use super::read::digest_of;

/// Callers that one opening may name.
const MAX_CALLERS: usize = 64;
/// Openings over one sidecar's set at a time.
pub(super) const MAX_OVERLAYS: usize = 8;

/// What an operator wants to open; it cannot be made wrong.
#[derive(Clone, Debug)]
pub struct Opening {
    namespace: String,
    /// Nobody named: every proven peer.
    from: Vec<Caller>,
    reason: String,
    by: Option<String>,
    length: Duration,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Caller {
    Id(SpiffeId),
    Account(String),
    Namespace(String),
}

impl Opening {
    /// `from` names callers: a SPIFFE id, `namespace/service-account` or `namespace/*`.
    pub fn new(
        namespace: &str,
        from: &[String],
        reason: &str,
        by: Option<&str>,
        length: Duration,
    ) -> Result<Self, String> {
        if !is_name(namespace) {
            return Err(format!("{namespace:?} is no namespace: a-z, 0-9 and '-', at most 63"));
        }
        if length < Duration::from_secs(1) || length > MAX_OPEN {
            return Err(format!(
                "it can be open for 1s to {}h: what is wanted for longer is a policy",
                MAX_OPEN.as_secs() / 3_600
            ));
        }
        if reason.trim().is_empty() {
            return Err("a reason is needed: it stands in the log of every decision".to_owned());
        }
        if from.len() > MAX_CALLERS {
            return Err(format!("at most {MAX_CALLERS} callers can be named"));
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            from: from.iter().map(|text| Caller::parse(text)).collect::<Result<_, _>>()?,
            reason: line("the reason", reason)?,
            by: by.map(|by| line("who opens", by)).transpose()?.filter(|by| !by.is_empty()),
            length,
        })
    }

    /// The namespace that it opens.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The document that opens from `now` on, in the root namespace, under this name.
    pub fn document(&self, name: &str, root_namespace: &str, now: SystemTime) -> String {
        let mut text = String::with_capacity(1_024);
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let _ = write!(
            text,
            "# It ends by itself; `postern policy open --close {name}` ends it earlier.\n\
             apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata:\n  name: {name}\n  \
             namespace: {}\n  annotations:\n    {BREAK_GLASS}: \"true\"\n    {REASON}: {}\n",
            quoted(root_namespace),
            quoted(&self.reason)
        );
        if let Some(by) = &self.by {
            let _ = writeln!(text, "    {OPENED_BY}: {}", quoted(by));
        }
        let _ = write!(
            text,
            "spec:\n  tier: Platform\n  target: {{namespaces: [{}]}}\n  action: Allow\n  rules:\n  - name: open\n",
            quoted(&self.namespace)
        );
        if !self.from.is_empty() {
            text.push_str("    from:\n");
        }
        for caller in &self.from {
            let _ = match caller {
                Caller::Id(id) => writeln!(text, "    - {{spiffe: [{}]}}", quoted(id.as_str())),
                Caller::Account(account) => {
                    writeln!(text, "    - {{serviceAccounts: [{}]}}", quoted(account))
                }
                Caller::Namespace(name) => writeln!(text, "    - {{namespaces: [{}]}}", quoted(name)),
            };
        }
        let (from, until) = self.span(now);
        let _ = writeln!(
            text,
            "    when: {{time: {{notBefore: {}, notAfter: {}}}}}",
            quoted(&rfc3339(from)),
            quoted(&rfc3339(until))
        );
        text
    }

    /// From the second in which `now` lies, for as long as was said.
    pub fn span(&self, now: SystemTime) -> (SystemTime, SystemTime) {
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let from = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        (from, from + Duration::from_secs(self.length.as_secs()))
    }
}

impl Caller {
    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with("spiffe:") {
            return SpiffeId::parse(text).map(Self::Id).map_err(|error| format!("{text:?}: {error}"));
        }
        match text.split_once('/') {
            Some((namespace, "*")) if is_name(namespace) => Ok(Self::Namespace(namespace.to_owned())),
            Some((namespace, account)) if is_name(namespace) && is_name(account) => {
                Ok(Self::Account(text.to_owned()))
            }
            _ => Err(format!(
                "{text:?} is no caller: write a SPIFFE id, NAMESPACE/SERVICE-ACCOUNT or NAMESPACE/*"
            )),
        }
    }
}

/// As the checker of documents has it.
fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// One line that can stand in a log and in a document.
fn line(what: &str, text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.len() > MAX_REASON {
        return Err(format!("{what} is longer than {MAX_REASON} bytes"));
    }
    if text.contains(is_unseen) {
        return Err(format!(
            "{what} holds characters that nobody sees, or that move what is seen: it is written to logs, as plain text"
        ));
    }
    Ok(text.to_owned())
}

fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

/// A name for a new opening.
pub fn fresh_name() -> String {
    let mut random = [0_u8; 4];
    // Without randomness a name may be taken, which the set then refuses.
    let _ = aws_lc_rs::rand::fill(&mut random);
    format!("open-{:08x}", u32::from_le_bytes(random))
}

/// What was opened over one sidecar's set. It is held in memory only: a sidecar that starts anew is closed.
#[derive(Debug, Default)]
pub(super) struct Overlays(Vec<Overlay>);

#[derive(Clone, Debug)]
pub(super) struct Overlay {
    pub(super) name: String,
    file: SourceFile,
    opened: Moment,
    /// On both clocks: wall time that is set back must not make it longer.
    until: SystemTime,
    until_monotonic: Instant,
}

impl Overlay {
    pub(super) fn new(name: String, opening: &Opening, root_namespace: &str, now: Moment) -> Self {
        let (_, until) = opening.span(now.wall);
        let text = opening.document(&name, root_namespace, now.wall).into_bytes();
        let file = SourceFile { name: format!("{name} (opened through the admin socket)"), text };
        Self { name, file, opened: now, until, until_monotonic: now.monotonic + opening.length }
    }

    pub(super) fn until(&self) -> SystemTime {
        self.until
    }

    fn is_over(&self, now: Moment) -> bool {
        now.wall >= self.until || now.monotonic >= self.until_monotonic || now.wall < self.opened.wall
    }
}

impl Overlays {
    pub(super) fn files(&self) -> Vec<SourceFile> {
        self.0.iter().map(|overlay| overlay.file.clone()).collect()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.0.iter().map(|overlay| overlay.name.clone()).collect()
    }

    /// Of a set with what was opened over it.
    pub(super) fn digest(&self, set: &Set) -> String {
        if self.0.is_empty() {
            return set.digest.clone();
        }
        let over = self.0.iter().map(|overlay| &overlay.file);
        let all: Vec<&SourceFile> = set.files.iter().map(|file| &**file).chain(over).collect();
        digest_of(&all)
    }

    pub(super) fn with(&self, overlay: Overlay) -> Self {
        Self(self.0.iter().cloned().chain([overlay]).collect())
    }

    /// Without the one of this name, or without any; `None` if there is none to leave out.
    pub(super) fn without(&self, name: Option<&str>) -> Option<Self> {
        let is_meant = |overlay: &&Overlay| name.is_none_or(|name| overlay.name == name);
        let rest: Vec<Overlay> = self.0.iter().filter(|overlay| !is_meant(overlay)).cloned().collect();
        (rest.len() < self.0.len()).then_some(Self(rest))
    }

    /// Without those that are over; `None` if none is.
    pub(super) fn still_open(&self, now: Moment) -> Option<Self> {
        let rest: Vec<Overlay> = self.0.iter().filter(|overlay| !overlay.is_over(now)).cloned().collect();
        (rest.len() < self.0.len()).then_some(Self(rest))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use postern_policy::{Scope, load};
    use postern_svid::TrustDomain;

    use super::*;

    fn opening(reason: &str, from: &[&str]) -> Result<Opening, String> {
        let from: Vec<String> = from.iter().map(|text| (*text).to_owned()).collect();
        Opening::new("shop", &from, reason, Some("ada@laptop"), Duration::from_secs(900))
    }

    #[test]
    fn what_it_writes_loads_and_says_what_was_said() {
        let scope = Scope {
            trust_domain: TrustDomain::parse("td").unwrap(),
            root_namespace: "root".into(),
            workload: None,
        };
        for reason in ["orders are down", "a \"quoted\": {x}, # no comment", "'", "\\n %s \u{e9}", "- a: |"] {
            let opening = opening(reason, &["shop/web", "ops/*", "spiffe://td/ns/a/sa/b"]).unwrap();
            let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_773_600_999);
            let text = opening.document("open-1", "root", now).into_bytes();
            let loaded = load(&[SourceFile { name: "a".into(), text }], &scope, 1);
            let loaded = loaded.unwrap_or_else(|errors| panic!("{errors}"));
            let open = loaded.documents()[0].break_glass.clone().unwrap();
            assert_eq!((&*open.reason, open.by.as_deref()), (reason, Some("ada@laptop")));
            assert_eq!((open.from, open.until), (1_795_773_600, 1_795_774_500));
        }
    }

    #[test]
    fn what_must_not_be_opened_so_is_refused() {
        for reason in
            ["", "  ", "two\nlines", "\u{1b}[2J", "\u{2028}", "a\u{202e}b", "a\u{200b}b", &"x".repeat(257)]
        {
            assert!(opening(reason, &[]).is_err(), "{reason:?}");
        }
        for caller in ["web", "shop/", "/web", "shop/w*", "*/*", "spiffe://", "Shop/web", "a/b/c"] {
            assert!(opening("r", &[caller]).is_err(), "{caller}");
        }
        for (namespace, seconds) in [("shop", 0), ("shop", 4 * 3_600 + 1), ("", 60), ("a: b", 60), ("*", 60)]
        {
            let length = Duration::from_secs(seconds);
            assert!(Opening::new(namespace, &[], "r", None, length).is_err(), "{namespace} {seconds}");
        }
    }

    #[test]
    fn no_clock_makes_it_longer() {
        let clock = postern_svid::TestClock::at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
        let now = || Moment::now(&clock);
        let overlays = Overlays::default().with(Overlay::new(
            "open-1".into(),
            &opening("r", &[]).unwrap(),
            "root",
            now(),
        ));
        clock.advance(Duration::from_secs(899));
        assert!(overlays.still_open(now()).is_none());
        clock.jump_wall(-60_000);
        clock.advance(Duration::from_secs(1));
        assert_eq!(overlays.still_open(now()).map(|rest| rest.len()), Some(0));
    }
}

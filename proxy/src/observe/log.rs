//! The log: its shape is settled at the start, its level can change while it runs, and nothing that is logged can pose
//! as a line of its own or steer the terminal that shows it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::str::FromStr as _;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt};

use crate::config::{LogConfig, LogFormat};

const WAY_OUT: &str = "write info, or info,postern::access=debug; levels: off error warn info debug trace";

static LEVEL: OnceLock<(Handle<Targets, Registry>, parking_lot::Mutex<String>)> = OnceLock::new();

/// Starts the log on standard error. A second call (tests, embedding) changes nothing.
pub fn start(config: &LogConfig) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(parse(&config.level)?);
    let lines = match config.format {
        LogFormat::Text => fmt::layer().with_writer(entries).with_ansi(false).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(entries).boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let _ = LEVEL.set((handle, parking_lot::Mutex::new(config.level.clone())));
    }
    Ok(())
}

/// The level in force.
pub fn level() -> String {
    LEVEL.get().map_or_else(String::new, |(_, level)| level.lock().clone())
}

/// Changes the level: `info`, or `info,postern::access=debug`.
pub fn set_level(text: &str) -> Result<(), String> {
    let filter = parse(text)?;
    let (handle, level) = LEVEL.get().ok_or("the log was not started by this sidecar")?;
    handle.reload(filter).map_err(|error| error.to_string())?;
    text.clone_into(&mut level.lock());
    Ok(())
}

/// Whether `text` is a level, and what is wrong with it if not.
pub fn check(text: &str) -> Result<(), String> {
    parse(text).map(drop)
}

fn parse(text: &str) -> Result<Targets, String> {
    // tracing takes any word for the name of a part: `inof` would log that part and silence everything else.
    for word in text.split(',').map(str::trim).filter(|part| !part.contains('=')) {
        if word.is_empty() || LevelFilter::from_str(word).is_err() {
            return Err(format!("log level {text:?}: {word:?} is no level ({WAY_OUT})"));
        }
    }
    Targets::from_str(text).map_err(|error| format!("log level {text:?}: {error} ({WAY_OUT})"))
}

/// Longest path in a line, in bytes.
const MAX_PATH: usize = 256;

/// A path as a line of the log shows it: a caller chooses how long it is, and must not choose how long the log gets.
pub fn path(path: &str) -> Cow<'_, str> {
    if path.len() <= MAX_PATH {
        return Cow::Borrowed(path);
    }
    let kept = &path[..path.floor_char_boundary(MAX_PATH)];
    Cow::Owned(format!("{kept}… ({} bytes)", path.len()))
}

/// How often lines of one kind may come, so that whoever causes them cannot fill the disk.
#[derive(Debug)]
pub struct Bound {
    what: &'static str,
    most: u32,
    state: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    begun: Option<Instant>,
    written: u32,
    /// By reason: each is one of ours, so there are few.
    left_out: BTreeMap<&'static str, u64>,
}

const SECOND: Duration = Duration::from_secs(1);

/// Handshakes refused at the mesh listener: anyone on the network can cause these.
pub static HANDSHAKES: Bound = Bound::new("refused handshakes", 10);
/// Requests that failed, by a reason that an operator has to see: a peer with an identity, or the workload.
pub static FAILURES: Bound = Bound::new("failed requests", 100);
/// Denials. They are the audit of what was tried, so there is room for many.
pub static DENIALS: Bound = Bound::new("denials", 1_000);

/// What broken glass lets in. That it is broken is told for itself; these say what came of it.
pub static GLASS: Bound = Bound::new("calls through broken glass", 100);

impl Bound {
    /// At most `most` lines a second about `what`.
    pub const fn new(what: &'static str, most: u32) -> Self {
        let state = Lines { begun: None, written: 0, left_out: BTreeMap::new() };
        Self { what, most, state: Mutex::new(state) }
    }

    /// Whether one more line may be written. One that may not is counted under `reason`.
    pub fn admits(&self, reason: &'static str) -> bool {
        self.tell();
        let mut state = self.state.lock();
        state.begun.get_or_insert_with(Instant::now);
        if state.written < self.most {
            state.written += 1;
            return true;
        }
        *state.left_out.entry(reason).or_default() += 1;
        false
    }

    /// Ends a second that is over, and says in one line what it left out.
    pub fn tell(&self) {
        let left_out = {
            let mut state = self.state.lock();
            if state.begun.is_none_or(|begun| begun.elapsed() < SECOND) {
                return;
            }
            state.begun = None;
            state.written = 0;
            std::mem::take(&mut state.left_out)
        };
        if left_out.is_empty() {
            return;
        }
        let lines: u64 = left_out.values().sum();
        let reasons: Vec<String> =
            left_out.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        tracing::info!(lines, reasons = reasons.join(", "), "lines about {} were left out", self.what);
    }
}

/// Tells once a second what was left out, when nothing more comes that would.
pub async fn tell_left_out() {
    loop {
        tokio::time::sleep(SECOND).await;
        for bound in [&HANDSHAKES, &FAILURES, &DENIALS, &GLASS] {
            bound.tell();
        }
    }
}

fn entries() -> Entries<io::Stderr> {
    Entries(io::stderr())
}

/// Writes entries without control characters, whichever field they came in. Line breaks within an entry stay, for the
/// findings about documents, but what follows one is indented: no line begins with what somebody else chose.
#[derive(Debug)]
struct Entries<W>(W);

impl<W: Write> Write for Entries<W> {
    /// One call is one entry, its end of line included: so the subscriber writes.
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        let body = entry.strip_suffix(b"\n").unwrap_or(entry);
        let text = String::from_utf8_lossy(body);
        if text.chars().any(char::is_control) {
            let mut clean = String::with_capacity(text.len() + 64);
            for c in text.chars() {
                match c {
                    '\n' => clean.push_str("\n    "),
                    c if c.is_control() => clean.push_str(&format!("\\u{:04x}", u32::from(c))),
                    c => clean.push(c),
                }
            }
            clean.push('\n');
            self.0.write_all(clean.as_bytes())?;
        } else {
            self.0.write_all(entry)?;
        }
        Ok(entry.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_cut_and_its_length_told() {
        assert_eq!(path("/short"), "/short");
        let long = format!("/{}", "a".repeat(60_000));
        let shown = path(&long);
        assert!(shown.len() < 280 && shown.ends_with("aaa… (60001 bytes)"), "{shown}");
        for lead in ["/", "/a", "/ab", "/abc"] {
            assert!(path(&format!("{lead}{}", "é".repeat(300))).contains('…'), "cut between characters");
        }
    }

    #[test]
    fn what_is_logged_cannot_forge_a_line_nor_steer_a_terminal() {
        let mut written = Vec::new();
        let forged = "INFO error=\u{1b}[2J\u{9b}1m a\r\tb\0\u{7f}\n2026-11-27T00:00:00Z ERROR forged\n";
        Entries(&mut written).write_all(forged.as_bytes()).unwrap();
        let text = String::from_utf8(written).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "INFO error=\\u001b[2J\\u009b1m a\\u000d\\u0009b\\u0000\\u007f",
                "    2026-11-27T00:00:00Z ERROR forged"
            ]
        );
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
    }

    #[test]
    fn the_log_goes_through_it_in_both_shapes() {
        use tracing_subscriber::fmt::MakeWriter;

        #[derive(Clone, Default)]
        struct Kept(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);
        impl Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        struct Make(Kept);
        impl<'a> MakeWriter<'a> for Make {
            type Writer = Entries<Kept>;
            fn make_writer(&'a self) -> Self::Writer {
                Entries(self.0.clone())
            }
        }
        for json in [false, true] {
            let kept = Kept::default();
            let make = Make(kept.clone());
            let lines = if json {
                fmt::layer().json().flatten_event(true).with_writer(make).boxed()
            } else {
                fmt::layer().with_writer(make).with_ansi(false).boxed()
            };
            let subscriber = tracing_subscriber::registry().with(lines);
            tracing::subscriber::with_default(subscriber, || {
                let evil = "x\r\n\u{1b}]0;t\u{7}\u{85}";
                tracing::error!(error = %evil, path = evil, "it said {evil}");
            });
            let text = String::from_utf8(kept.0.lock().clone()).unwrap();
            assert!(text.contains("it said") && text.ends_with('\n'), "{text:?}");
            let is_forged =
                |line: &str| line.starts_with(['\u{1b}', ']']) || line.chars().any(char::is_control);
            assert!(!text.lines().any(is_forged), "{text:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_writes_so_many_lines_a_second_and_one_about_the_rest() {
        #[derive(Clone, Default)]
        struct Kept(std::sync::Arc<Mutex<Vec<u8>>>);
        impl Write for Kept {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                self.0.lock().extend_from_slice(text);
                Ok(text.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = fmt::layer().with_writer(move || writer.clone()).with_ansi(false);
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines));
        let bound = Bound::new("floods", 10);
        for n in 0..50_000 {
            let reason = if n % 2 == 0 { "closed" } else { "not_tls" };
            if bound.admits(reason) {
                tracing::info!(reason, "one");
            }
        }
        bound.tell();
        assert_eq!(kept.0.lock().iter().filter(|byte| **byte == b'\n').count(), 10);
        tokio::time::sleep(SECOND).await;
        bound.tell();
        bound.tell();
        let text = String::from_utf8(kept.0.lock().clone()).unwrap();
        assert_eq!(text.lines().count(), 11, "{text}");
        let last = text.lines().last().unwrap();
        assert!(last.contains("lines about floods were left out lines=49990"), "{last}");
        assert!(last.contains("closed 24995, not_tls 24995"), "{last}");
        assert!(bound.admits("closed"), "the next second has room again");
    }

    #[test]
    fn a_word_that_is_no_level_silences_nothing() {
        for good in ["info", "off", "warn,postern::access=debug", "postern::access=debug"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in
            ["loud", "", "inof,postern::access=debug", "info,postern::access", "info,postern::access=loud"]
        {
            assert!(check(bad).is_err_and(|error| error.contains("levels: off")), "{bad}");
        }
    }
}

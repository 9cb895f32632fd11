//! The log: its shape is settled at the start, its level can change while it runs.

use std::str::FromStr as _;
use std::sync::OnceLock;

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
        LogFormat::Text => fmt::layer().with_writer(std::io::stderr).with_ansi(false).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
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

#[cfg(test)]
mod tests {
    use super::*;

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

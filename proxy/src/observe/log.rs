//! The log: its shape is settled at the start, its level can change while it runs.

use std::str::FromStr as _;
use std::sync::OnceLock;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt};

use crate::config::{LogConfig, LogFormat};

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

fn parse(text: &str) -> Result<Targets, String> {
    Targets::from_str(text).map_err(|error| {
        format!("log level {text:?}: {error} (write info, or info,postern::access=debug; levels: off error warn info debug trace)")
    })
}

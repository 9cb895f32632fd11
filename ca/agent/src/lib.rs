//! A workload's side of identity.
//!
//! The agent makes a key, proves who it is with a token, receives an X.509-SVID and the trust bundle, renews before
//! time runs out and follows the bundle. It publishes each change as a new [`Identity`]; it never takes one back: an
//! identity whose SVID has expired stays published, and whoever uses it refuses by its `not_after`.
//!
//! Nothing is sent to a control plane, no token above all, before its handshake has proven its SPIFFE id against
//! configured trust. The state directory lets a restarted process come back without any control plane.

mod config;
mod connect;
mod descriptor;
mod error;
mod federation;
mod files;
mod hurry;
mod identity;
mod install;
mod jwt;
mod key;
mod load;
mod net;
mod pace;
mod possession;
mod proto;
mod renew;
mod runtime;
mod state;
mod status;
mod watch;
pub mod workload;

use std::sync::Arc;

use postern_svid::Clock;
use tokio::sync::watch::Receiver;

pub use config::{Attestation, Config, Trust};
pub use error::StartError;
pub use identity::{Identity, Observer};
pub use status::Status;

use identity::Live;
use state::State;

/// An agent that has read its state and is ready to run.
pub struct Agent {
    live: Arc<Live>,
}

/// Checks `config`, takes the state directory for this process alone and reads it. A valid SVID found there is published
/// at once, before any control plane was asked.
pub fn start(config: Config, clock: Arc<dyn Clock>) -> Result<Agent, StartError> {
    config.check()?;
    let state = State::open(&config.state_dir)?;
    let live = Live::new(config, clock, state);
    live.load()?;
    Ok(Agent { live: Arc::new(live) })
}

impl Agent {
    /// The current identity and every later one; `None` until there is a first.
    pub fn identity(&self) -> Receiver<Option<Arc<Identity>>> {
        self.live.subscribe()
    }

    /// What the agent is at.
    pub fn status(&self) -> Status {
        self.live.status()
    }

    /// Identity and status for those who stay when [`run`](Self::run) has taken the agent.
    pub fn observer(&self) -> Observer {
        Observer::new(self.live.clone())
    }

    /// Issues, renews and follows the bundle until `stop` becomes true or its sender is gone. All that it starts ends
    /// with it; dropping the future stops everything as well.
    pub async fn run(self, mut stop: Receiver<bool>) {
        crate::runtime::select! {
            _ = stop.wait_for(|stop| *stop) => {}
            () = renew::run(&self.live) => {}
            () = watch::run(&self.live) => {}
        }
    }
}

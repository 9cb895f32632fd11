//! Names outside of the mesh, looked up by the system's resolver. Only hosts that Service documents name are looked up.
//!
//! Whatever comes back is judged before it is dialled, and dialled as it was judged: a name that is looked up twice can
//! mean two addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::net;

/// An answer is believed this long. The system's resolver does not tell how long it may be; what changes in DNS is
/// followed soon, and a busy caller does not ask for each of its requests.
const FRESH: Duration = Duration::from_secs(5);
/// An answer that says nothing is asked for again sooner.
const FAILED: Duration = Duration::from_secs(1);
/// The system's own resolver gives up after this long with one silent server.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lookups at once: each holds a thread, and reading documents needs threads too.
const LOOKUPS: usize = 16;
/// Names kept; more than documents of one workload have.
const KEPT: usize = 1_024;
/// Addresses of one name that are judged and dialled.
pub const MAX_ADDRESSES: usize = 16;

/// Addresses of a name, or why there is none.
pub type Answer = Result<Vec<IpAddr>, String>;

/// The names looked up lately.
#[derive(Debug)]
pub struct Resolver {
    known: Mutex<HashMap<Box<str>, (Instant, Answer)>>,
    permits: Semaphore,
}

impl Default for Resolver {
    fn default() -> Self {
        Self { known: Mutex::default(), permits: Semaphore::new(LOOKUPS) }
    }
}

impl Resolver {
    /// The addresses of `name`, in the order of the system's preference.
    pub async fn resolve(&self, name: &str) -> Answer {
        if let Some(answer) = self.known(name) {
            return answer;
        }
        let looked_up = async {
            let _permit = self.permits.acquire().await.map_err(|error| error.to_string())?;
            // Whoever waited may find what another has brought.
            match self.known(name) {
                Some(answer) => answer,
                None => net::resolve(name).await.map_err(|error| error.to_string()),
            }
        };
        let answer = match timeout(PATIENCE, looked_up).await {
            Ok(Ok(addresses)) => usable(addresses),
            Ok(Err(error)) => Err(error),
            Err(_) => Err("the resolver does not answer".to_owned()),
        };
        self.remember(name, answer.clone());
        answer
    }

    fn known(&self, name: &str) -> Option<Answer> {
        let known = self.known.lock();
        known.get(name).filter(|(until, _)| *until > Instant::now()).map(|(_, answer)| answer.clone())
    }

    fn remember(&self, name: &str, answer: Answer) {
        let now = Instant::now();
        let mut known = self.known.lock();
        if known.len() >= KEPT {
            known.retain(|_, (until, _)| *until > now);
        }
        if known.len() < KEPT {
            known.insert(name.into(), (now + if answer.is_ok() { FRESH } else { FAILED }, answer));
        }
    }
}

fn usable(addresses: Vec<IpAddr>) -> Answer {
    let mut out: Vec<IpAddr> = Vec::new();
    for address in addresses {
        let address = address.to_canonical();
        if out.len() < MAX_ADDRESSES && !out.contains(&address) {
            out.push(address);
        }
    }
    if out.is_empty() { Err("the name has no address".to_owned()) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_addresses_some_are_used_each_once() {
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        let mapped = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(usable(vec![address(1), mapped, address(2)]), Ok(vec![address(1), address(2)]));
        assert_eq!(usable((0..99).map(address).collect()).unwrap().len(), MAX_ADDRESSES);
        assert!(usable(Vec::new()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_believed_for_a_while() {
        let resolver = Resolver::default();
        let answer = Ok(vec![IpAddr::from([192, 0, 2, 1])]);
        resolver.remember("a.example", answer.clone());
        assert_eq!(resolver.resolve("a.example").await, answer);
        tokio::time::advance(FRESH).await;
        assert_eq!(resolver.known("a.example"), None);
        for n in 0..2 * KEPT {
            resolver.remember(&format!("n{n}.example"), Err("no".to_owned()));
        }
        assert_eq!(resolver.known.lock().len(), KEPT);
    }
}

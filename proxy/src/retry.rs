//! Whether a failed attempt may be made again.

use crate::error::{Error, Retry};

/// Attempts in all: the first, and one elsewhere.
const ATTEMPTS: usize = 2;

/// Whether another attempt may follow: only if the failed one proved that nothing of it was processed, and its body is
/// still whole. A payment is never sent twice.
pub fn should_retry(error: &Error, attempts: usize, body_is_whole: bool) -> bool {
    attempts < ATTEMPTS && body_is_whole && error.retry == Retry::Unsent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Reason, Side};

    #[test]
    fn only_what_was_not_sent_and_only_once() {
        let unsent = Error::unsent(Side::Remote, Reason::RemoteUnreachable, "");
        let sent = Error::new(Side::Remote, Reason::RemoteReset, "");
        assert!(should_retry(&unsent, 1, true));
        assert!(!should_retry(&unsent, 2, true));
        assert!(!should_retry(&unsent, 1, false));
        assert!(!should_retry(&sent, 1, true));
    }
}

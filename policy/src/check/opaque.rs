//! What becomes opaque or is it: `upgrade` and `sni` in `to` and `not`.

use super::{Page, target};
use crate::doc::List;
use crate::rule::HostPattern;
use crate::upgrade::{BadUpgrade, Upgrade, Upgrades};
use crate::yaml;

/// Checks `upgrade`.
pub(super) fn upgrades(page: &mut Page<'_>, list: &List<String>) -> Upgrades {
    if let Some(star) = list.value.iter().find(|item| item.value == "*") {
        if list.value.len() > 1 {
            page.error_with(star.referenced, "`*` stands alone", "leave out the others");
        }
        return Upgrades::Any;
    }
    let mut named = Vec::with_capacity(list.value.len());
    for item in page.items(list, "upgrade") {
        match Upgrade::parse(&item.value) {
            Ok(upgrade) => {
                if let Some(meant) = yaml::nearest(&item.value, &["websocket"]).filter(|_| is_named(&upgrade))
                {
                    page.warn(item.referenced, "this is not the name of WebSocket", meant);
                }
                named.push(upgrade);
            }
            Err(error @ BadUpgrade::Never) => {
                page.error_with(item.referenced, error.to_string(), "no rule needs to speak of it");
            }
            Err(error) => page.error_with(item.referenced, error.to_string(), error.help()),
        }
    }
    Upgrades::Only(named)
}

fn is_named(upgrade: &Upgrade) -> bool {
    matches!(upgrade, Upgrade::Named(_))
}

/// Checks `sni`.
pub(super) fn sni(page: &mut Page<'_>, list: &List<String>) -> Vec<HostPattern> {
    let names = target::hosts(page, list, "sni");
    for item in &list.value {
        let name = item.value.trim_start_matches('[').trim_end_matches(']');
        if name.parse::<std::net::IpAddr>().is_ok() {
            page.error_with(
                item.referenced,
                "a server name of TLS is never an address (RFC 6066, 3)",
                "name the ports with `ports`, or the callers with `from`",
            );
        }
    }
    names
}

//! `capture`: connections come redirected by the rules of `postern-init`.

use std::net::IpAddr;

use postern_policy::yaml::{self, Spanned};
use postern_policy::{Diagnostics, SourceFile};
use serde::Deserialize;

use super::File;

/// What the sidecar is told of redirection.
#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// The workload's own addresses: a redirected connection was for one of them, or is refused.
    pub addresses: Vec<IpAddr>,
    /// What the sidecar's own connections bear, so that they are not redirected. None: it is told apart by its user.
    pub mark: Option<u32>,
    /// Whether what escapes redirection must be refused by rules.
    pub lock: bool,
}

/// A workload has one address of each family, or a few.
const MOST_ADDRESSES: usize = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    mode: Spanned<String>,
    addresses: Spanned<Vec<Spanned<IpAddr>>>,
    mark: Option<Spanned<u32>>,
    lock: Option<bool>,
}

/// Checks the section, each mistake with its place.
pub(super) fn check(file: &SourceFile, raw: &File, wrong: &mut Diagnostics) -> Option<CaptureConfig> {
    let Raw { mode, addresses, mark, lock } = raw.capture.as_ref()?;
    if mode.value != "redirect" {
        wrong.push(yaml::at(file, mode, format!("unknown mode {:?}", mode.value)).with_help(
            "write redirect; without `capture` the workload is told to use its sidecar as a proxy",
        ));
    }
    if addresses.value.is_empty() || addresses.value.len() > MOST_ADDRESSES {
        wrong.push(
            yaml::at(file, addresses, format!("1 to {MOST_ADDRESSES} addresses are the workload's own"))
                .with_help("write those at which others reach it, of IPv4 and of IPv6"),
        );
    }
    let mut own = Vec::new();
    for address in &addresses.value {
        let ip = address.value.to_canonical();
        if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
            wrong.push(
                yaml::at(file, address, format!("nobody else reaches the workload at {ip}"))
                    .with_help("write an address of its network interface"),
            );
        } else if own.contains(&ip) {
            wrong.push(yaml::at(file, address, format!("{ip} stands here twice")));
        }
        own.push(ip);
    }
    if let Some(mark) = mark.as_ref().filter(|mark| mark.value == 0) {
        wrong.push(yaml::at(file, mark, "0 is what a connection without a mark bears"));
    }
    doors(file, raw, &own, wrong);
    Some(CaptureConfig {
        addresses: own,
        mark: mark.as_ref().map(|mark| mark.value),
        lock: lock.unwrap_or(true),
    })
}

/// Redirection leads to where the rules say, and nowhere else.
fn doors(file: &SourceFile, raw: &File, own: &[IpAddr], wrong: &mut Diagnostics) {
    let inbound = &raw.inbound.address;
    let port = inbound.value.port();
    if !inbound.value.ip().is_unspecified() {
        wrong.push(
            yaml::at(file, inbound, "what is redirected arrives at any of the workload's addresses")
                .with_help(format!("write \"[::]:{port}\", which is all of IPv6 and of IPv4")),
        );
    } else if inbound.value.is_ipv4() && own.iter().any(IpAddr::is_ipv6) {
        wrong.push(
            yaml::at(file, inbound, "nobody would answer connections to the workload's IPv6 address")
                .with_help(format!("write \"[::]:{port}\"")),
        );
    }
    let outbound = &raw.outbound.address;
    if !matches!(outbound.value.ip().to_string().as_str(), "127.0.0.1" | "::1") {
        wrong.push(
            yaml::at(file, outbound, "the kernel redirects to 127.0.0.1 and to ::1, and to no other address")
                .with_help(format!(
                    "write \"127.0.0.1:{}\": it is opened for both families",
                    outbound.value.port()
                )),
        );
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use postern_policy::{Diagnostics, SourceFile};

    use crate::config::Config;

    fn parse(capture: &str, inbound: &str, outbound: &str) -> Result<Config, Diagnostics> {
        let text = format!(
            "identity: spiffe://demo.postern/ns/shop/sa/orders
stateDir: /s
controlPlane:
  address: 127.0.0.1:1
  spiffeId: spiffe://demo.postern/postern/control
  trustBundle: /b
  joinToken: /t
workload: {{address: 10.0.0.5, ports: [{{port: 8080, protocol: http}}]}}
documents: /d
inbound: {{address: \"{inbound}\"}}
outbound: {{address: \"{outbound}\"}}
health: {{address: \"0.0.0.0:24191\"}}
admin: {{socket: /a, address: \"127.0.0.1:24190\"}}
capture: {capture}
"
        );
        Config::parse(&SourceFile { name: "sidecar.yaml".to_owned(), text: text.into_bytes() })
    }

    #[test]
    fn the_section_is_read() {
        let capture =
            "{mode: redirect, mark: 0x706f, addresses: [10.0.0.5, \"fd00::5\", \"::ffff:10.0.0.6\"]}";
        let config =
            parse(capture, "[::]:24143", "127.0.0.1:24140").unwrap_or_else(|wrong| panic!("{wrong}"));
        let read = config.capture.as_ref().unwrap();
        assert_eq!((read.mark, read.lock, read.addresses.len()), (Some(0x706f), true, 3));
        for own in ["10.0.0.5", "10.0.0.6", "fd00::5"] {
            assert!(read.addresses.contains(&own.parse().unwrap()), "{own}");
            assert!(config.own_addresses().contains(&own.parse().unwrap()), "{own}");
        }
        // No port of the sidecar's is one of the workload's, whichever address it is bound to.
        for port in [24140, 24143, 24190, 24191] {
            for address in ["10.0.0.5", "fd00::5", "127.0.0.1"] {
                let place = SocketAddr::new(address.parse().unwrap(), port);
                assert!(config.is_own_door(place), "{place}");
            }
            assert!(!config.reaches(None, port), "{port}");
        }
        assert!(!config.is_own_door(([10, 0, 0, 5], 8080).into()) && config.reaches(None, 8080));
        assert!(!config.is_own_door(([10, 0, 0, 9], 24143).into()));
        assert!(parse("{mode: redirect, addresses: [10.0.0.5]}", "0.0.0.0:24143", "[::1]:24140").is_ok());
    }

    #[test]
    fn mistakes_have_their_place() {
        let good = "{mode: redirect, addresses: [10.0.0.5]}";
        for (capture, inbound, outbound, words) in [
            (good, "10.0.0.5:24143", "127.0.0.1:24140", "write \"[::]:24143\""),
            (good, "[::]:24143", "127.0.0.2:24140", "and to no other address"),
            (
                "{mode: redirect, addresses: [\"fd00::5\"]}",
                "0.0.0.0:24143",
                "127.0.0.1:24140",
                "IPv6 address",
            ),
            ("{mode: tproxy, addresses: [10.0.0.5]}", "[::]:24143", "127.0.0.1:24140", "unknown mode"),
            ("{mode: redirect, addresses: []}", "[::]:24143", "127.0.0.1:24140", "1 to 16 addresses"),
            (
                "{mode: redirect, addresses: [127.0.0.1]}",
                "[::]:24143",
                "127.0.0.1:24140",
                "nobody else reaches",
            ),
            ("{mode: redirect, addresses: [10.0.0.5, 10.0.0.5]}", "[::]:24143", "127.0.0.1:24140", "twice"),
            (
                "{mode: redirect, mark: 0, addresses: [10.0.0.5]}",
                "[::]:24143",
                "127.0.0.1:24140",
                "without a mark",
            ),
            ("{addresses: [10.0.0.5]}", "[::]:24143", "127.0.0.1:24140", "mode"),
            ("{mode: redirect}", "[::]:24143", "127.0.0.1:24140", "addresses"),
            ("{mode: redirect, addresses: [10.0.0.5], uid: 1}", "[::]:24143", "127.0.0.1:24140", "uid"),
        ] {
            let said = parse(capture, inbound, outbound).expect_err(capture).to_string();
            assert!(said.contains(words) && said.contains("sidecar.yaml:1"), "{capture}: {said}");
        }
    }
}

//! The rules, as text for `nft`. Only numbers and addresses that are parsed get into it.
//!
//! `nat_*` redirect; `lock_*` refuse what was not redirected, so that without the first two nothing goes in clear. The lines
//! about ports 24138 to 24142 let the sidecar see from inside, without privileges, that each chain does its part; and
//! `escaped` holds for ten seconds what the redirection of incoming connections should have taken and did not.

use std::fmt::{Display, Write as _};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::{Config, Exclusion};

/// The table's name.
pub(crate) const TABLE: &str = "postern";
/// Ports of loopback that the sidecar asks itself at: which chain each is about is in the sidecar's `capture.rs`.
pub(crate) const QUESTIONS: [u16; 4] = [LOCK_IN, LOCK_OUT, REDIRECT_IN, REDIRECT_OUT];
const LOCK_IN: u16 = 24_138;
const LOCK_OUT: u16 = 24_139;
const REDIRECT_IN: u16 = 24_141;
/// Redirected as any call is.
pub(crate) const REDIRECT_OUT: u16 = 24_142;
/// What connections to the sidecar's own doors bear once they have passed redirection: "po".
const SEEN: u32 = 0x706f;

/// Replaces the table, in one transaction.
pub(crate) fn script(config: &Config) -> String {
    format!("{}{}", removal(TABLE), table(config, TABLE, ""))
}

/// Takes the table away, whether it is there or not.
pub(crate) fn removal(name: &str) -> String {
    format!("table inet {name}\ndelete table inet {name}\n")
}

/// The table. `flags` is empty, or a line of its own.
pub(crate) fn table(config: &Config, name: &str, flags: &str) -> String {
    let mut text = format!("table inet {name} {{\n{flags}");
    sets(&mut text, config);
    redirection(&mut text, config);
    let escaped = watching(config);
    lock_in(&mut text, config, &escaped);
    if config.lock {
        lock_out(&mut text, config);
    }
    text.push_str("}\n");
    text
}

fn sets(text: &mut String, config: &Config) {
    let (nets4, nets6): (Vec<IpNet>, Vec<IpNet>) =
        config.skip_networks.iter().partition(|net| matches!(net, IpNet::V4(_)));
    let (dns4, dns6): (Vec<IpAddr>, Vec<IpAddr>) = config.dns.iter().partition(|address| address.is_ipv4());
    for (name, kind, elements) in [
        ("skip_in", "inet_service; flags interval", listed(config.skip_inbound.iter())),
        ("skip_out", "inet_service; flags interval", listed(config.skip_outbound.iter())),
        ("skip_net4", "ipv4_addr; flags interval", listed(nets4.iter())),
        ("skip_net6", "ipv6_addr; flags interval", listed(nets6.iter())),
        ("udp_in", "inet_service; flags interval", listed(config.udp_inbound.iter())),
        ("udp_out", "inet_service; flags interval", listed(config.udp_outbound.iter())),
        ("dns4", "ipv4_addr", listed(dns4.iter())),
        ("dns6", "ipv6_addr", listed(dns6.iter())),
    ] {
        let elements = if elements.is_empty() { elements } else { format!("elements = {{ {elements} }}; ") };
        let _ = writeln!(text, "  set {name} {{ type {kind}; {elements}}}");
    }
    let _ = writeln!(text, "  set escaped {{ type nf_proto; size 4; flags dynamic,timeout; timeout 10s; }}");
}

fn listed<T: Display>(all: impl Iterator<Item = T>) -> String {
    all.map(|one| one.to_string()).collect::<Vec<_>>().join(", ")
}

fn excluded(config: &Config) -> String {
    match config.exclusion {
        Exclusion::Uid(uid) => format!("meta skuid {uid}"),
        Exclusion::Mark(mark) => format!("meta mark {mark:#010x}"),
    }
}

/// The sidecar's own doors: nothing is redirected that was for them.
fn doors(config: &Config) -> String {
    format!("tcp dport {{ {}, {} }}", config.inbound_port, config.health_port)
}

fn redirection(text: &mut String, config: &Config) {
    let Config { inbound_port, outbound_port, .. } = config;
    let (doors, excluded) = (doors(config), excluded(config));
    let questions = listed(QUESTIONS.iter());
    // Nothing of loopback's is redirected but the sidecar's questions, and those are whoever asks them.
    let _ = write!(
        text,
        "  chain nat_in {{
    type nat hook prerouting priority -100; policy accept;
    iifname \"lo\" return
    tcp dport @skip_in counter return
    {doors} ct mark set {SEEN:#010x} return
    meta l4proto tcp counter redirect to :{inbound_port}
  }}
  chain nat_out {{
    type nat hook output priority -100; policy accept;
    oifname \"lo\" tcp dport != {{ {questions} }} return
    oifname != \"lo\" {excluded} counter return
    ip daddr @dns4 tcp dport 53 return
    ip6 daddr @dns6 tcp dport 53 return
    ip daddr @skip_net4 counter return
    ip6 daddr @skip_net6 counter return
    tcp dport @skip_out counter return
    meta l4proto tcp counter redirect to :{outbound_port}
  }}
"
    );
}

/// The lines that see what came past `nat_in`, and tell the sidecar when it asks.
fn watching(config: &Config) -> [String; 3] {
    let question = |port: u16, more: &str| {
        format!(
            "iifname \"lo\" ct direction original meta l4proto tcp ct original proto-dst {port} {more}reject with tcp reset"
        )
    };
    [
        question(LOCK_IN, ""),
        question(REDIRECT_IN, "meta nfproto @escaped "),
        format!("{} ct state new ct mark != {SEEN:#010x} update @escaped {{ meta nfproto }}", doors(config)),
    ]
}

fn lock_in(text: &mut String, config: &Config, [own, escaped, past_doors]: &[String; 3]) {
    let doors = doors(config);
    text.push_str("  chain lock_in {\n    type filter hook input priority 0; policy accept;\n");
    if config.lock {
        let _ = writeln!(text, "    {own}");
    }
    let _ = write!(
        text,
        "    {escaped}
    iifname \"lo\" accept
    ct state established,related accept
    ct status dnat accept
    {past_doors}
    {doors} accept
    tcp dport @skip_in accept
    meta l4proto tcp ct state new update @escaped {{ meta nfproto }}
"
    );
    if config.lock {
        text.push_str(
            "    udp dport @udp_in accept
    meta l4proto { icmp, ipv6-icmp } accept
    ct state invalid counter drop
    meta l4proto tcp counter reject with tcp reset
    counter drop
",
        );
    }
    text.push_str("  }\n");
}

fn lock_out(text: &mut String, config: &Config) {
    let excluded = excluded(config);
    let ping = if config.allow_ping {
        "    icmp type echo-request accept\n    icmpv6 type echo-request accept\n"
    } else {
        ""
    };
    // After redirection the interface is still the one that the packet would have left by, hence the second line.
    let _ = write!(
        text,
        "  chain lock_out {{
    type filter hook output priority 0; policy accept;
    oifname \"lo\" ct direction original meta l4proto tcp ct original proto-dst {LOCK_OUT} reject with tcp reset
    oifname \"lo\" accept
    ct status dnat accept
    {excluded} accept
    ct state established,related accept
    ip daddr @dns4 meta l4proto {{ tcp, udp }} th dport 53 accept
    ip6 daddr @dns6 meta l4proto {{ tcp, udp }} th dport 53 accept
    ip daddr @skip_net4 accept
    ip6 daddr @skip_net6 accept
    tcp dport @skip_out accept
    udp dport @udp_out accept
    icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld-listener-report, mld-listener-done, mld2-listener-report }} accept
{ping}    ct state invalid counter drop
    counter reject with icmpx admin-prohibited
  }}
"
    );
}

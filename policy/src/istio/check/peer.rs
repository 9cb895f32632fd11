//! PeerAuthentication: whether peers must prove who they are.
//!
//! Here they always must at the mesh's listener, and no document changes that. So STRICT says what holds anyway, and the
//! other modes load with a warning that says what takes their place.

use std::collections::BTreeMap;

use super::super::doc::{MtlsDoc, PeerAuthenticationSpec};
use super::{labels, names};
use crate::check::Page;
use crate::doc::{Document, Sp};
use crate::yaml;

/// What a mode asks for.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Mode {
    /// What holds here anyway.
    Strict,
    Permissive,
    Disable,
}

/// Checks a PeerAuthentication. Nothing is made of it: there is nothing that it could change.
pub(crate) fn peer_authentication(page: &mut Page<'_>, document: &Document<PeerAuthenticationSpec>) {
    let Document { api_version: _, kind: _, metadata, spec } = document;
    names(page, metadata);
    let PeerAuthenticationSpec { selector, mtls, port_level_mtls } = &spec.value;
    let selected = selector.as_ref().map(|selector| labels(page, selector)).unwrap_or_default();
    if let Some(mtls) = mtls {
        mode(page, mtls);
    }
    let Some(ports) = port_level_mtls else { return };
    if selected.is_empty() {
        page.error_with(
            ports.referenced,
            "`portLevelMtls` needs a `selector`: ports are a workload's",
            "write `selector: {matchLabels: ...}`",
        );
    }
    by_port(page, ports);
}

fn by_port(page: &mut Page<'_>, ports: &Sp<BTreeMap<String, Sp<MtlsDoc>>>) {
    if ports.value.is_empty() {
        page.error_with(ports.referenced, "`portLevelMtls` is empty", "name a port, or leave it out");
    }
    for (port, mtls) in &ports.value {
        if !port.parse::<u16>().is_ok_and(|port| port != 0) {
            page.error_with(
                mtls.referenced,
                format!("`{}` is no port", yaml::printable(port)),
                "ports are numbers from 1 to 65535",
            );
        }
        mode(page, mtls);
    }
}

fn mode(page: &mut Page<'_>, mtls: &Sp<MtlsDoc>) {
    let MtlsDoc { mode } = &mtls.value;
    let Some(word) = mode else { return };
    // Unset inherits, and there is nothing but STRICT to be inherited.
    let known = [
        ("STRICT", Mode::Strict),
        ("PERMISSIVE", Mode::Permissive),
        ("DISABLE", Mode::Disable),
        ("UNSET", Mode::Strict),
    ];
    match page.word(word, &known) {
        Some(Mode::Permissive) => page.warn(
            word.referenced,
            "PERMISSIVE opens nothing here: the mesh's listener takes peers with an identity only, and no ALLOW of Istio's kind admits another",
            "peers without an identity that are redirected to this workload are admitted by an AccessPolicy with \
             `from: [{unauthenticated: true, cidrs: [...]}]`",
        ),
        Some(Mode::Disable) => page.warn(
            word.referenced,
            "DISABLE is not obeyed: the mesh's listener takes mutual TLS only",
            "peers without an identity that are redirected to this workload are admitted by an AccessPolicy with \
             `from: [{unauthenticated: true, cidrs: [...]}]`",
        ),
        Some(Mode::Strict) | None => {}
    }
}

//! What a port says about paths.

use serde::Serialize;

use crate::norm::{EscapedSlashes, PathOptions};
use crate::services::Protocol;

/// What a port says about paths; where it says nothing, the mesh's defaults hold.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortPaths {
    /// What happens to `%2F`, `%5C` and `\`. `None`: as everywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub escaped_slashes: Option<EscapedSlashes>,
    /// Whether the path goes on byte for byte as it came, for a backend that checks a signature of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub preserve_raw_path: bool,
}

impl PortPaths {
    /// How paths are read at this port of a mesh with these defaults.
    pub fn options(self, defaults: PathOptions) -> PathOptions {
        PathOptions {
            escaped_slashes: self.escaped_slashes.unwrap_or(defaults.escaped_slashes),
            preserve_raw: self.preserve_raw_path || defaults.preserve_raw,
        }
    }

    /// Why a port of `protocol` cannot say this, and the way out.
    pub fn mistake(self, protocol: Protocol) -> Option<(String, &'static str)> {
        if self == Self::default() {
            None
        } else if !protocol.is_http() {
            Some((
                format!("a port of protocol {protocol} has no paths"),
                "leave `escapedSlashes` and `preserveRawPath` out, or declare the port as http, http2 or grpc",
            ))
        } else if self.preserve_raw_path && self.escaped_slashes == Some(EscapedSlashes::Decode) {
            Some((
                "`Decode` changes paths that `preserveRawPath` promises to leave alone".to_owned(),
                "write `Keep` to take escaped slashes as they are, or `Reject` to refuse them",
            ))
        } else {
            None
        }
    }
}

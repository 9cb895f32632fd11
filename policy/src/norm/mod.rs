//! One canonical form of method, path and host, for the decision, the log and what is forwarded.
//!
//! The constructors are the only way to these types, so nothing that was not canonicalised can reach the engine.

mod host;
mod method;
mod path;

pub use host::CanonHost;
pub use method::CanonMethod;
pub(crate) use method::is_token;
pub use path::{
    CanonPath, EscapedSlashes, MAX_PATH, MAX_READINGS, PathOptions, check_grpc, without_fragment,
};

use std::fmt;

/// Why a request line or host cannot be given a canonical form. Each is answered with 400.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum NormError {
    /// A byte that no request target may hold raw.
    PathByte,
    /// An escape that stands for a control character.
    PathControl,
    /// `..` above the root.
    PathDots,
    /// `.` or `..` with parameters (`/..;x/`).
    PathDotParams,
    /// A `%` without two hexadecimal digits.
    PathEscape,
    /// An escaped slash or a backslash.
    PathSlash,
    /// Not canonical, where it would be forwarded as it came and rules speak of paths.
    PathRaw,
    /// It does not begin with a slash.
    PathStart,
    /// Longer than [`MAX_PATH`].
    PathTooLong,
    /// It can be read in more ways than [`MAX_READINGS`].
    PathReadings,
    /// Not `/{service}/{method}` in canonical spelling with POST.
    Grpc,
    /// Not a token of RFC 9110 5.6.2, or longer than 64 bytes.
    Method,
    /// A common method in other letters.
    MethodCase,
    /// Empty.
    HostEmpty,
    /// A character that no host name holds (user information, spaces, `%` and lists included).
    HostCharacter,
    /// A label that is empty or too long, or a name that is too long.
    HostLabel,
    /// An address in a spelling that programs read differently.
    HostAddress,
    /// The port is not a number from 1 to 65535.
    HostPort,
    /// Not canonical, where it would be forwarded as it came.
    HostRaw,
}

impl NormError {
    /// A short label for metrics and the access log.
    pub fn label(self) -> &'static str {
        match self {
            Self::PathByte => "path_byte",
            Self::PathControl => "path_control",
            Self::PathDots => "path_dots",
            Self::PathDotParams => "path_dot_params",
            Self::PathEscape => "path_escape",
            Self::PathRaw => "path_raw",
            Self::PathSlash => "path_slash",
            Self::PathStart => "path_start",
            Self::PathTooLong => "path_too_long",
            Self::PathReadings => "path_readings",
            Self::Grpc => "grpc_path",
            Self::Method => "method",
            Self::MethodCase => "method_case",
            Self::HostEmpty => "host_empty",
            Self::HostCharacter => "host_character",
            Self::HostLabel => "host_label",
            Self::HostAddress => "host_address",
            Self::HostPort => "host_port",
            Self::HostRaw => "host_raw",
        }
    }
}

impl fmt::Display for NormError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PathByte => {
                "the path holds a byte that must be escaped (spaces, control characters, '#', non-ASCII)"
            }
            Self::PathControl => "the path holds an escaped control character",
            Self::PathDots => "the path leads above the root with '..'",
            Self::PathDotParams => "the path holds '.' or '..' with parameters",
            Self::PathEscape => "the path holds a '%' that is not followed by two hexadecimal digits",
            Self::PathRaw => {
                "the path is not in canonical form, and this port preserves raw paths where rules speak of them"
            }
            Self::PathSlash => "the path holds an escaped slash or a backslash",
            Self::PathStart => "the path does not begin with '/'",
            Self::PathTooLong => "the path is longer than 8 KiB",
            Self::PathReadings => "the path is escaped or parameterised in too many ways",
            Self::Grpc => "a gRPC call must be a POST to /service/method in plain spelling",
            Self::Method => "the method is not a token",
            Self::MethodCase => "the method is a common one but for its letters' case, and some servers take it for that one",
            Self::HostEmpty => "the host is empty",
            Self::HostCharacter => "the host holds a character that no host name has",
            Self::HostLabel => "a part of the host name is empty or too long",
            Self::HostAddress => "the host is an address in an ambiguous spelling",
            Self::HostPort => "the port is not a number from 1 to 65535",
            Self::HostRaw => {
                "the host is not in canonical form (lower case, no dot at its end, plain addresses), and this port preserves \
                 what is signed"
            }
        })
    }
}

impl std::error::Error for NormError {}

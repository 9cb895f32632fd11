//! What an operator's command asks of the running control plane, where a database alone cannot do it: what it changes is shared.

use std::time::SystemTime;

use postern_svid::Revoked;
use serde::{Deserialize, Serialize};

use super::tokens::WireToken;
use super::wire::WireRevocation;
use crate::store::{Reason, Revocation};
use crate::token::TokenRecord;

/// A wish.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Put an entry on the deny list.
    Revoke(Revocation),
    /// Take one off.
    AllowAgain {
        /// Which.
        entry: Revoked,
        /// Why.
        reason: Reason,
    },
    /// Note that a CA is not to be trusted any more.
    Taint {
        /// Which.
        label: String,
        /// Why.
        reason: Reason,
    },
    /// Add a join token.
    Token(TokenRecord),
    /// Write this replica's copy into a shared store that was put back to an older state.
    PutBack,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Edited {
    /// The version of the trust bundle that has it.
    pub sequence: Option<u64>,
    /// Whether it was not so before.
    pub is_new: bool,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
enum Wire {
    Revoke(WireRevocation),
    AllowAgain { entry: WireRevocation },
    Taint { label: String, reason: String },
    Token(WireToken),
    PutBack,
}

impl Edit {
    pub(crate) fn encode(&self) -> String {
        let wire = match self {
            Self::Revoke(entry) => Wire::Revoke(entry.into()),
            Self::AllowAgain { entry, reason } => {
                let (entry, reason) = (entry.clone(), reason.clone());
                let entry = Revocation { entry, reason, at: SystemTime::UNIX_EPOCH, ends: None };
                Wire::AllowAgain { entry: (&entry).into() }
            }
            Self::Taint { label, reason } => {
                Wire::Taint { label: label.clone(), reason: reason.as_str().to_owned() }
            }
            Self::Token(token) => Wire::Token(token.into()),
            Self::PutBack => Wire::PutBack,
        };
        // Maps with string keys and numbers: serde_json cannot fail on them.
        serde_json::to_string(&wire).unwrap_or_default()
    }

    pub(crate) fn decode(text: &str) -> Result<Self, String> {
        let wire: Wire = serde_json::from_str(text).map_err(|error| error.to_string())?;
        Ok(match wire {
            Wire::Revoke(entry) => Self::Revoke(entry.try_into()?),
            Wire::AllowAgain { entry } => {
                let Revocation { entry, reason, .. } = entry.try_into()?;
                Self::AllowAgain { entry, reason }
            }
            Wire::Taint { label, reason } => {
                Self::Taint { label, reason: Reason::parse(&reason).map_err(|error| error.to_string())? }
            }
            Wire::Token(token) => Self::Token(TokenRecord::try_from(token).map_err(str::to_owned)?),
            Wire::PutBack => Self::PutBack,
        })
    }
}

//! Issuers of tokens in MeshDefaults, and what rules ask of tokens.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{List, Sp, present};
use crate::yaml::Span;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct JwtDefaults {
    pub(crate) issuers: List<IssuerDoc>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) other_tokens: Option<Sp<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct IssuerDoc {
    pub(crate) issuer: Sp<String>,
    pub(crate) audiences: List<String>,
    pub(crate) jwks: Sp<JwksDoc>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) algorithms: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) clock_skew: Option<Sp<Span>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) header: Option<Sp<TokenHeaderDoc>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) forward: Option<Sp<bool>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct JwksDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) file: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) url: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) inline: Option<Sp<serde_json::Value>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) ca_file: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) max_stale: Option<Sp<Span>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TokenHeaderDoc {
    pub(crate) name: Sp<String>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) prefix: Option<Sp<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct JwtDoc {
    pub(crate) issuer: Sp<String>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) audiences: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) subjects: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) claims: Option<Sp<BTreeMap<String, Sp<ClaimDoc>>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ClaimDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) exact: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) prefix: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) any: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) has: Option<Sp<Words>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) present: Option<Sp<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) not: Option<Sp<NotClaimDoc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NotClaimDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) exact: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) prefix: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) has: Option<Sp<Words>>,
}

/// One word, or a list of words.
pub(crate) struct Words(pub(crate) Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word, or a list of words")
            }

            fn visit_str<E>(self, word: &str) -> Result<Words, E> {
                Ok(Words(vec![word.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = list.next_element()? {
                    words.push(word);
                }
                Ok(Words(words))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

/// The token of a PolicyTest's request.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TokenDoc {
    #[serde(default, deserialize_with = "present")]
    pub(crate) unverified: Option<Sp<bool>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) issuer: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) subject: Option<Sp<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) audiences: Option<List<String>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) claims: Option<Sp<serde_json::Map<String, serde_json::Value>>>,
}

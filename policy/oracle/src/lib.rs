//! A second opinion about policies, from `cedar-policy`.
//!
//! A set of rules is written once, as a [`Model`], and told to both: to Postern as documents ([`documents`]), to Cedar as
//! policies ([`Cedar`]). Neither text is made from the other, so a mistake in how we read documents shows as well.
//!
//! What Cedar is not asked: `when`, header fields, JWT claims, services. Tiers are sets of policies that are asked one
//! after the other, opaque TCP is told to each policy as what it means for its action ("a Deny fires on what is never
//! known, an Allow does not").

mod cedar;
mod model;
mod text;

pub use cedar::{Cedar, Opinion, Prepared};
pub use model::{Ask, Http, Model, NotWhat, NotWho, Side, TRUST_DOMAIN, Tier, What, Who, documents, scope};
pub use text::policy;

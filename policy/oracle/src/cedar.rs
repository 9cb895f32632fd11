//! Asking Cedar.

use std::collections::HashSet;

use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, Policy, PolicyId,
    PolicySet, Request, RestrictedExpression,
};

use crate::model::{Ask, Model, Side, Tier};
use crate::text;

/// The rules as Cedar has them: one set of policies for each tier.
pub struct Cedar {
    authorizer: Authorizer,
    tiers: [PolicySet; 3],
}

/// What Cedar thinks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Opinion {
    /// Allowed, and the numbers of the rules that do.
    Allow(Vec<usize>),
    /// Denied, and the numbers of the rules that do; none if no rule allows it.
    Deny(Vec<usize>),
}

/// A question as Cedar wants it.
pub struct Prepared {
    request: Request,
    entities: Entities,
}

impl Cedar {
    /// Tells Cedar the rules; an error is a policy that it does not take.
    pub fn new(rules: &[Model]) -> Result<Self, String> {
        let mut tiers = [PolicySet::new(), PolicySet::new(), PolicySet::new()];
        for (n, rule) in rules.iter().enumerate() {
            let text = text::policy(rule);
            let policy = Policy::parse(Some(PolicyId::new(n.to_string())), &text)
                .map_err(|error| format!("{text}: {error:?}"))?;
            tiers[rule.tier as usize].add(policy).map_err(|error| error.to_string())?;
        }
        Ok(Self { authorizer: Authorizer::new(), tiers })
    }

    /// Puts a question in Cedar's words.
    pub fn prepare(ask: &Ask) -> Result<Prepared, String> {
        let kind = |kind: &str, name: &str| -> Result<EntityUid, String> {
            let kind: EntityTypeName = kind.parse().map_err(|error| format!("{error}"))?;
            Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(name)))
        };
        let mut parents = HashSet::new();
        let principal = match &ask.identity {
            None => kind("Peer", "anonymous")?,
            Some(id) => {
                let (domain, path) =
                    id.trim_start_matches("spiffe://").split_once('/').ok_or("no SPIFFE id")?;
                parents.insert(kind("Domain", domain)?);
                if let ["ns", namespace, "sa", account] = path.split('/').collect::<Vec<_>>()[..] {
                    parents.insert(kind("Namespace", &format!("{domain}/{namespace}"))?);
                    parents.insert(kind("Account", &format!("{domain}/{namespace}/{account}"))?);
                }
                kind("Id", id)?
            }
        };
        let entity = Entity::new_no_attrs(principal.clone(), parents);
        let entities = Entities::from_entities([entity], None).map_err(|error| error.to_string())?;
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let mut context = vec![
            ("authenticated".to_owned(), RestrictedExpression::new_bool(ask.identity.is_some())),
            ("address".to_owned(), RestrictedExpression::new_ip(ask.address.to_canonical().to_string())),
            ("port".to_owned(), RestrictedExpression::new_long(i64::from(ask.port))),
            ("tcp".to_owned(), RestrictedExpression::new_bool(ask.http.is_none())),
        ];
        if let Some(http) = &ask.http {
            let segments: Vec<&str> = http.path.trim_start_matches('/').split('/').collect();
            context.push(("method".to_owned(), text(&http.method)));
            context.push(("path".to_owned(), text(&http.path)));
            context.push(("host".to_owned(), text(&http.host)));
            let number = i64::try_from(segments.len()).unwrap_or(i64::MAX);
            context.push(("segments".to_owned(), RestrictedExpression::new_long(number)));
            for (n, segment) in segments.iter().enumerate() {
                context.push((format!("s{n}"), text(segment)));
                context.push((format!("r{}", segments.len() - 1 - n), text(segment)));
            }
        }
        let context = Context::from_pairs(context).map_err(|error| error.to_string())?;
        let (action, resource) = (kind("Action", "use")?, kind("Workload", "shop/orders")?);
        let request =
            Request::new(principal, action, resource, context, None).map_err(|error| error.to_string())?;
        Ok(Prepared { request, entities })
    }

    /// Whether the question is allowed, and no more: what a caller in a hurry asks.
    pub fn allows(&self, question: &Prepared) -> bool {
        self.answers(question).any(|(_, decision, decided)| decided && decision == Decision::Allow)
    }

    /// The opinion with the rules behind it; an error is a policy that could not be evaluated, which is a mistake in
    /// the translation.
    pub fn opinion(&self, question: &Prepared) -> Result<Opinion, String> {
        for policies in &self.tiers {
            let response = self.authorizer.is_authorized(&question.request, policies, &question.entities);
            if let Some(error) = response.diagnostics().errors().next() {
                return Err(error.to_string());
            }
            let mut rules: Vec<usize> =
                response.diagnostics().reason().filter_map(|id| id.to_string().parse().ok()).collect();
            rules.sort_unstable();
            match response.decision() {
                Decision::Allow => return Ok(Opinion::Allow(rules)),
                Decision::Deny if !rules.is_empty() => return Ok(Opinion::Deny(rules)),
                Decision::Deny => {}
            }
        }
        Ok(Opinion::Deny(Vec::new()))
    }

    /// Tier by tier until one decides.
    fn answers(&self, question: &Prepared) -> impl Iterator<Item = (Tier, Decision, bool)> {
        let mut decided = false;
        Tier::ALL.into_iter().zip(&self.tiers).filter(|(_, set)| !set.is_empty()).map_while(
            move |(tier, policies)| {
                if decided {
                    return None;
                }
                let response = self.authorizer.is_authorized(&question.request, policies, &question.entities);
                decided = response.diagnostics().reason().next().is_some();
                Some((tier, response.decision(), decided))
            },
        )
    }
}

impl Opinion {
    /// Whether it is an Allow.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// The numbers of the rules behind it.
    pub fn rules(&self) -> &[usize] {
        match self {
            Self::Allow(rules) | Self::Deny(rules) => rules,
        }
    }

    /// What the rules behind it do.
    pub fn side(&self) -> Side {
        if self.is_allowed() { Side::Allow } else { Side::Deny }
    }
}

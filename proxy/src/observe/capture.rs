//! Metrics of redirection.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::capture::Rule;
use crate::connections::Direction;

type Labels = Vec<(&'static str, &'static str)>;

/// What is known of redirection.
#[derive(Debug)]
pub struct CaptureCounts {
    /// 1 while a rule does not do what it is there for, by [`Rule`].
    pub missing: [Gauge; 4],
    /// Connections of which the kernel did not say where they were made to, by direction.
    pub lost: [Counter; 2],
}

impl CaptureCounts {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let missing = Family::<Labels, Gauge>::default();
        registry.register(
            "capture_missing",
            "1 while a rule of redirection does not do what it is there for, by rule",
            missing.clone(),
        );
        let lost = Family::<Labels, Counter>::default();
        registry.register(
            "capture_lost",
            "Connections refused because the kernel did not say where they were made to",
            lost.clone(),
        );
        Self {
            missing: Rule::ALL.map(|rule| missing.get_or_create_owned(&vec![("rule", rule.label())])),
            lost: [Direction::Inbound, Direction::Outbound]
                .map(|direction| lost.get_or_create_owned(&vec![("direction", direction.label())])),
        }
    }
}

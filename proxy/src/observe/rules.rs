//! How often each rule decided. A rule that has never decided stands there with a zero: it may be the one that nobody
//! needs, or the one that was written wrong.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use postern_policy::{Enforcement, Generation, Verdict};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

/// Series of rules: more than a person writes for one workload, and what a scraper still takes.
const MAX_SERIES: usize = 2_000;

/// The counts of one generation's rules, by their numbers.
#[derive(Clone, Debug, Default)]
pub struct RuleCounts(Arc<[Arc<AtomicU64>]>);

impl RuleCounts {
    /// Counts a verdict with the rules that it names.
    pub fn count(&self, verdict: &Verdict) {
        let Verdict { rule, shadow, audit, effect: _, generation: _ } = verdict;
        let named = [*rule, shadow.and_then(|would| would.rule), *audit];
        for rule in named.into_iter().flatten() {
            if let Some(count) = self.0.get(rule.index()) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// The rules in force, with their counts. A count lives on in the next generation if the rule keeps its name.
#[derive(Debug, Default)]
pub struct RuleSeries {
    shown: Mutex<Vec<Series>>,
}

#[derive(Clone, Debug)]
struct Series {
    rule: String,
    action: &'static str,
    enforcement: &'static str,
    count: Arc<AtomicU64>,
}

impl RuleSeries {
    /// The counts for a generation that comes into force.
    pub fn follow(&self, generation: &Generation) -> RuleCounts {
        let mut shown = self.shown.lock();
        let before: HashMap<String, Arc<AtomicU64>> =
            shown.drain(..).map(|series| (series.rule, series.count)).collect();
        let (mut counts, mut next) = (Vec::new(), Vec::new());
        for (_, name) in generation.rules() {
            let rule = name.to_string();
            let count = before.get(&rule).cloned().unwrap_or_default();
            counts.push(Arc::clone(&count));
            if next.len() < MAX_SERIES {
                let enforcement = match name.enforcement {
                    Enforcement::Enforce => "enforce",
                    Enforcement::Shadow => "shadow",
                };
                next.push(Series { rule, action: name.action.label(), enforcement, count });
            }
        }
        *shown = next;
        RuleCounts(counts.into())
    }
}

/// Registered once; shows what is in force when it is asked.
#[derive(Debug)]
pub struct RuleCollector(pub Arc<RuleSeries>);

impl Collector for RuleCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let shown = self.0.shown.lock().clone();
        let mut family = encoder.encode_descriptor(
            "rule_verdicts",
            "Verdicts that a rule decided, would have decided in the shadow, or marked",
            None,
            MetricType::Counter,
        )?;
        for Series { rule, action, enforcement, count } in &shown {
            let labels = [("rule", rule.as_str()), ("action", action), ("enforcement", enforcement)];
            ConstCounter::new(count.load(Ordering::Relaxed)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use postern_policy::{Scope, SourceFile, Workload, load};
    use postern_svid::TrustDomain;
    use prometheus_client::registry::Registry;

    use super::*;

    fn generation(rules: &str) -> Generation {
        let text = format!(
            "apiVersion: postern.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {{action: Allow, rules: [{rules}]}}\n"
        );
        let scope = Scope {
            trust_domain: TrustDomain::parse("td").unwrap(),
            root_namespace: "root".into(),
            workload: Some(Workload {
                namespace: "shop".into(),
                service_account: "orders".into(),
                labels: Default::default(),
            }),
        };
        load(&[SourceFile { name: "p".into(), text: text.into_bytes() }], &scope, 1).unwrap()
    }

    fn page(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn counts_live_on_with_their_rules() {
        let series = Arc::new(RuleSeries::default());
        let mut registry = Registry::with_prefix("postern");
        registry.register_collector(Box::new(RuleCollector(Arc::clone(&series))));
        let line = |rule: &str| {
            let name = format!(
                "postern_rule_verdicts_total{{rule=\"shop/p/{rule}\",action=\"allow\",enforcement=\"enforce\"}} "
            );
            page(&registry).lines().find_map(|line| line.strip_prefix(&name).map(str::to_owned))
        };
        let first = generation("{name: a}, {name: b}");
        let counts = series.follow(&first);
        let id = postern_svid::SpiffeId::parse("spiffe://td/ns/shop/sa/web").unwrap();
        let source = postern_policy::Source { identity: Some(&id), address: [10, 0, 0, 1].into() };
        let verdict = first.decide(&first.connection(source), 1, postern_policy::Operation::Tcp);
        counts.count(&verdict);
        counts.count(&verdict);
        assert_eq!((line("a").as_deref(), line("b").as_deref()), (Some("2"), Some("0")));
        series.follow(&generation("{name: c}, {name: a}"));
        assert_eq!((line("a").as_deref(), line("b"), line("c").as_deref()), (Some("2"), None, Some("0")));
        let many: Vec<String> = (0..MAX_SERIES + 9).map(|n| format!("{{name: r{n}}}")).collect();
        series.follow(&generation(&many.join(", ")));
        assert_eq!(page(&registry).matches("rule=").count(), MAX_SERIES);
    }
}

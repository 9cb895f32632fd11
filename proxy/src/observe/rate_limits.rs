//! What each rate limit has let through and refused, and how many callers it tells apart.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use postern_policy::{Generation, Limit, LimitCounts};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// The limits in force. Their counts are theirs, and live on in the next generation under the same name.
#[derive(Debug, Default)]
pub struct LimitSeries {
    shown: Mutex<Vec<Limit>>,
}

impl LimitSeries {
    /// Shows the limits of a generation that comes into force, zeros included.
    pub fn follow(&self, generation: &Generation) {
        // A set holds few of them for one workload; its loader has a bound.
        *self.shown.lock() = generation.limits().cloned().collect();
    }
}

/// Registered once; shows what is in force when it is asked.
#[derive(Debug)]
pub struct LimitCollector(pub Arc<LimitSeries>);

impl Collector for LimitCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let shown = self.0.shown.lock().clone();
        let mut family = encoder.encode_descriptor(
            "rate_limit",
            "Requests and tunnels that a rate limit let through, refused, or would have refused in the shadow",
            None,
            MetricType::Counter,
        )?;
        for limit in &shown {
            let LimitCounts { admitted, refused, shadow_refused, keys: _ } = limit.counts();
            let results = [("admitted", admitted), ("refused", refused), ("shadow_refused", shadow_refused)];
            let [namespace, policy, name] = labels(limit);
            for (result, count) in results {
                let labels = [namespace, policy, name, ("result", result)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "rate_limit_keys",
            "Keys for which a rate limit holds a bucket",
            None,
            MetricType::Gauge,
        )?;
        for limit in &shown {
            let keys = i64::try_from(limit.counts().keys).unwrap_or(i64::MAX);
            ConstGauge::new(keys).encode(family.encode_family(&labels(limit))?)?;
        }
        Ok(())
    }
}

fn labels(limit: &Limit) -> [(&'static str, &str); 3] {
    let name = limit.name();
    [("namespace", &*name.namespace), ("policy", &*name.document), ("limit", &*name.limit)]
}

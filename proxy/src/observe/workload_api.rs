//! What the workload's own socket is asked for.

use std::fmt;
use std::sync::{Arc, OnceLock};

use postern_agent::workload::Counts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// The socket's counts, once there is a socket.
#[derive(Debug, Default)]
pub struct WorkloadApi(OnceLock<Arc<Counts>>);

impl WorkloadApi {
    /// The counts, which are shown from now on.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(self.0.get_or_init(Arc::default))
    }
}

/// Registered once; shows nothing without a socket.
#[derive(Debug)]
pub struct WorkloadApiCollector(pub Arc<WorkloadApi>);

impl Collector for WorkloadApiCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(counts) = self.0.0.get() else { return Ok(()) };
        let mut family = encoder.encode_descriptor(
            "workload_api_requests",
            "Calls at the workload's own socket, by method and result",
            None,
            MetricType::Counter,
        )?;
        for (method, result, count) in counts.requests() {
            let labels = [("method", method), ("result", result)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        for (name, help, count) in [
            ("workload_api_streams", "Streams at the workload's own socket that are open", counts.streams()),
            ("workload_api_connections", "Connections to the workload's own socket", counts.connections()),
        ] {
            let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

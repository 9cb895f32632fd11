//! What one worker thread has of its own: its pools.

use std::sync::Arc;
use std::time::Duration;

use crate::pool::MeshPool;
use crate::sidecar::Sidecar;
use crate::workload::WorkloadPool;

/// One thread of the data path.
#[derive(Debug)]
pub struct Worker {
    /// What all threads share.
    pub sidecar: Arc<Sidecar>,
    /// Connections to other sidecars.
    pub mesh: MeshPool,
    /// Connections to the workload.
    pub workload: Arc<WorkloadPool>,
}

impl Worker {
    /// A worker without connections.
    pub fn new(sidecar: Arc<Sidecar>) -> Arc<Self> {
        let workload = Arc::new(WorkloadPool::new(sidecar.metrics.limits.clone()));
        Arc::new(Self { sidecar, mesh: MeshPool::default(), workload })
    }

    /// Sweeps idle connections and follows renewals and trust, until the worker's runtime ends.
    pub async fn keep_house(self: Arc<Self>) {
        // Side by side: a round of renewals may wait for peers, and lost trust must not wait for it.
        tokio::join!(self.follow_renewals(), self.follow_trust());
    }

    async fn follow_trust(&self) {
        let mut changes = self.sidecar.registry.trust_changed.subscribe();
        while changes.changed().await.is_ok() {
            self.mesh.hold_to_trust(&self.sidecar).await;
        }
    }

    async fn follow_renewals(&self) {
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.workload.sweep(self.sidecar.snapshots.load().limits.workload_idle);
            self.mesh.renew(&self.sidecar).await;
        }
    }
}

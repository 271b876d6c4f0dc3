//! An IPVS table in memory. Refuses what `ip_vs_ctl.c` refuses, counts no traffic, but lets a test set
//! the connections of a real server.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use longshore_core::ruleset::ipvs::{
    Connections, IpvsDump, IpvsOp, IpvsRefusal, IpvsState, IpvsTimeouts, RealServerKey, Scheduler,
    TrafficStats, VirtualServerKey,
};
use nix::errno::Errno;

use super::{Ipvs, IpvsError, IpvsInfo, Reals};
use crate::fake::Faults;
use crate::netlink::{Refusal, RequestError};

/// IPVS in memory.
#[derive(Debug, Default)]
pub struct FakeIpvs {
    /// Scripted faults; the text of an operation is that of [`IpvsOp`]'s `Display`.
    pub faults: Faults,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: IpvsState,
    connections: BTreeMap<(VirtualServerKey, RealServerKey), Connections>,
    missing_schedulers: BTreeSet<Scheduler>,
    timeouts: IpvsTimeouts,
    applied: Vec<String>,
}

impl FakeIpvs {
    /// An empty table of a kernel with every scheduler.
    pub fn new() -> Self {
        FakeIpvs::default()
    }

    /// The table now.
    pub fn state(&self) -> IpvsState {
        self.lock().state.clone()
    }

    /// Every operation that succeeded, in order, in its error form.
    pub fn applied(&self) -> Vec<String> {
        self.lock().applied.clone()
    }

    /// Set what a real server carries.
    pub fn set_connections(&self, key: VirtualServerKey, real: RealServerKey, connections: Connections) {
        self.lock().connections.insert((key, real), connections);
    }

    /// Take a scheduler's module away.
    pub fn remove_scheduler(&self, scheduler: Scheduler) {
        self.lock().missing_schedulers.insert(scheduler);
    }

    /// Change the table behind the agent's back.
    pub fn tamper(&self, change: impl FnOnce(&mut IpvsState)) {
        change(&mut self.lock().state);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, op: &str) -> Result<(), IpvsError> {
        self.faults
            .check(op)
            .map_err(|errno| IpvsError::Refused { op: op.to_owned(), source: Refusal::new(errno) })
    }
}

impl Inner {
    fn apply(&mut self, op: &IpvsOp) -> Result<(), Errno> {
        if let IpvsOp::AddService { server, .. } | IpvsOp::SetService { server, .. } = op
            && self.missing_schedulers.contains(&server.scheduler)
        {
            return Err(Errno::ENOENT);
        }
        self.state.apply(op).map_err(|refusal| match refusal {
            IpvsRefusal::Exists => Errno::EEXIST,
            IpvsRefusal::NoService => Errno::ESRCH,
            IpvsRefusal::NoDest => Errno::ENOENT,
            IpvsRefusal::Range => Errno::ERANGE,
            IpvsRefusal::Invalid => Errno::EINVAL,
        })?;
        match op {
            IpvsOp::DelService { key } => self.connections.retain(|(of, _), _| of != key),
            IpvsOp::DelDest { key, real } => {
                self.connections.remove(&(*key, *real));
            }
            _ => {}
        }
        self.applied.push(op.to_string());
        Ok(())
    }

    fn reals(&self, key: &VirtualServerKey) -> Reals {
        let Some(service) = self.state.services.get(key) else { return Reals::new() };
        let connections = |real| self.connections.get(&(*key, real)).copied().unwrap_or_default();
        service.reals.iter().map(|(real, settings)| (*real, (*settings, connections(*real)))).collect()
    }
}

#[async_trait]
impl Ipvs for FakeIpvs {
    async fn dump(&self) -> Result<IpvsDump, IpvsError> {
        self.check("ipvs: dump")?;
        let inner = self.lock();
        let mut dump = IpvsDump { state: inner.state.clone(), ..IpvsDump::default() };
        for key in inner.state.services.keys() {
            dump.stats.insert(*key, TrafficStats::default());
            for (real, (_, connections)) in inner.reals(key) {
                dump.connections.insert((*key, real), connections);
            }
        }
        Ok(dump)
    }

    async fn reals(&self, key: VirtualServerKey) -> Result<Reals, IpvsError> {
        self.check(&format!("ipvs {key}: list destinations"))?;
        Ok(self.lock().reals(&key))
    }

    async fn apply(&self, ops: &[IpvsOp]) -> Vec<Result<(), IpvsError>> {
        ops.iter()
            .map(|op| {
                let outcome = self.faults.check(&op.to_string()).and_then(|()| self.lock().apply(op));
                outcome.map_err(|errno| IpvsError::of(op, RequestError::Refused(Refusal::new(errno))))
            })
            .collect()
    }

    async fn set_timeouts(&self, timeouts: IpvsTimeouts) -> Result<(), IpvsError> {
        self.check("ipvs: set connection time-outs")?;
        let mut inner = self.lock();
        let keep = |new: u32, old: u32| if new == 0 { old } else { new };
        let old = inner.timeouts;
        inner.timeouts = IpvsTimeouts {
            tcp: keep(timeouts.tcp, old.tcp),
            tcp_fin: keep(timeouts.tcp_fin, old.tcp_fin),
            udp: keep(timeouts.udp, old.udp),
        };
        Ok(())
    }

    async fn info(&self) -> Result<IpvsInfo, IpvsError> {
        self.check("ipvs: read version")?;
        Ok(IpvsInfo { version: (1, 2, 1), connection_table_size: 4096, timeouts: self.lock().timeouts })
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use longshore_core::ruleset::Protocol;
    use longshore_core::ruleset::ipvs::{RealServer, VirtualServer};

    use super::*;

    fn key() -> VirtualServerKey {
        VirtualServerKey::new(IpAddr::from([10, 96, 0, 10]), 53, Protocol::Udp)
    }

    fn add_dest() -> IpvsOp {
        let real = RealServerKey::new(IpAddr::from([10, 1, 2, 3]), 53);
        IpvsOp::AddDest { key: key(), real, settings: RealServer::default() }
    }

    fn add_service(scheduler: Scheduler) -> IpvsOp {
        IpvsOp::AddService { key: key(), server: VirtualServer::new(&key(), scheduler) }
    }

    /// The whole chain as it is logged.
    fn text(err: &IpvsError) -> String {
        let source = std::error::Error::source(err).map(|source| format!(": {source}"));
        format!("{err}{}", source.unwrap_or_default())
    }

    #[tokio::test]
    async fn one_refused_operation_stops_no_other_and_names_its_object() {
        let ipvs = FakeIpvs::new();
        let ops = [add_dest(), add_service(Scheduler::Rr), add_dest(), add_dest()];
        let outcomes = ipvs.apply(&ops).await;
        assert_eq!(
            text(outcomes[0].as_ref().unwrap_err()),
            "ipvs 10.96.0.10:53/udp: add destination 10.1.2.3:53: no such process"
        );
        assert!(outcomes[1].is_ok() && outcomes[2].is_ok());
        let again = outcomes[3].as_ref().unwrap_err();
        assert_eq!(text(again), "ipvs 10.96.0.10:53/udp: add destination 10.1.2.3:53: file exists");
        assert!(again.is_drift() && !again.is_retryable());
        assert_eq!(ipvs.dump().await.unwrap().state, ipvs.state());
    }

    #[tokio::test]
    async fn a_missing_scheduler_names_its_module() {
        let ipvs = FakeIpvs::new();
        ipvs.remove_scheduler(Scheduler::Mh);
        let outcomes = ipvs.apply(&[add_service(Scheduler::Mh)]).await;
        let err = outcomes[0].as_ref().unwrap_err();
        assert!(text(err).ends_with("the kernel has no scheduler mh (kernel module ip_vs_mh)"), "{err}");
        assert!(!err.is_drift());
    }

    #[tokio::test]
    async fn scripted_faults_leave_the_table_alone() {
        let ipvs = FakeIpvs::new();
        ipvs.faults.script("add service", Errno::EBUSY, 1);
        let outcomes = ipvs.apply(&[add_service(Scheduler::Rr)]).await;
        assert!(outcomes[0].as_ref().unwrap_err().is_retryable());
        assert_eq!(ipvs.state(), IpvsState::default());
        assert!(ipvs.apply(&[add_service(Scheduler::Rr)]).await[0].is_ok());
    }

    #[tokio::test]
    async fn connections_show_until_the_real_server_goes() {
        let ipvs = FakeIpvs::new();
        ipvs.apply(&[add_service(Scheduler::Rr), add_dest()]).await;
        let real = RealServerKey::new(IpAddr::from([10, 1, 2, 3]), 53);
        let busy = Connections { active: 2, inactive: 0, persistent: 0 };
        ipvs.set_connections(key(), real, busy);
        assert_eq!(ipvs.reals(key()).await.unwrap()[&real].1, busy);
        ipvs.apply(&[IpvsOp::DelDest { key: key(), real }, add_dest()]).await;
        assert!(ipvs.reals(key()).await.unwrap()[&real].1.is_drained());
    }
}

//! Links and addresses in memory, with a loopback device and one uplink from the start.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use nix::errno::Errno;

use super::{AddressOp, IpFamily, Link, LinkAddress, RouteError, Routes};
use crate::fake::Faults;
use crate::netlink::Refusal;

/// Links and addresses in memory.
#[derive(Debug)]
pub struct FakeRoutes {
    /// Scripted faults; texts are those of the errors (`device kube-ipvs0: add address 10.96.0.1`).
    pub faults: Faults,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    links: Vec<Link>,
    addresses: BTreeSet<LinkAddress>,
    next_index: u32,
    has_default_route: bool,
}

impl FakeRoutes {
    /// A host with `lo` and an uplink `eth0` that has `node_ip` and the default route.
    pub fn new(node_ip: IpAddr) -> Self {
        let link = |index, name: &str, loopback| Link {
            index,
            name: name.to_owned(),
            kind: String::new(),
            up: true,
            loopback,
            mtu: if loopback { 65_536 } else { 1500 },
        };
        let address = |link, addr, prefix| LinkAddress { link, addr, prefix, link_local: false };
        let inner = Inner {
            links: vec![link(1, "lo", true), link(2, "eth0", false)],
            addresses: BTreeSet::from([
                address(1, IpAddr::from([127, 0, 0, 1]), 8),
                address(2, node_ip, if node_ip.is_ipv6() { 64 } else { 24 }),
            ]),
            next_index: 3,
            has_default_route: true,
        };
        FakeRoutes { faults: Faults::default(), inner: Mutex::new(inner) }
    }

    /// Addresses of the device of this name, sorted.
    pub fn addresses_of(&self, name: &str) -> Vec<IpAddr> {
        let inner = self.lock();
        let index = inner.links.iter().find(|link| link.name == name).map(|link| link.index);
        inner
            .addresses
            .iter()
            .filter(|address| Some(address.link) == index)
            .map(|address| address.addr)
            .collect()
    }

    /// Add an address to the uplink, or another device, behind the agent's back.
    pub fn add_address(&self, address: LinkAddress) {
        self.lock().addresses.insert(address);
    }

    /// Add a device that is not ours.
    pub fn add_link(&self, name: &str, kind: &str) -> Link {
        self.lock().add_link(name, kind)
    }

    /// Take the default route away or bring it back.
    pub fn set_default_route(&self, present: bool) {
        self.lock().has_default_route = present;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, op: &str) -> Result<(), RouteError> {
        self.faults.check(op).map_err(|errno| refused(op, errno))
    }
}

fn refused(op: &str, errno: Errno) -> RouteError {
    RouteError::Refused { op: op.to_owned(), source: Refusal::new(errno) }
}

impl Inner {
    fn add_link(&mut self, name: &str, kind: &str) -> Link {
        let link = Link {
            index: self.next_index,
            name: name.to_owned(),
            kind: kind.to_owned(),
            up: false,
            loopback: false,
            mtu: 1500,
        };
        self.next_index += 1;
        self.links.push(link.clone());
        link
    }
}

#[async_trait]
impl Routes for FakeRoutes {
    async fn link(&self, name: &str) -> Result<Option<Link>, RouteError> {
        self.check(&format!("device {name}: look up"))?;
        Ok(self.lock().links.iter().find(|link| link.name == name).cloned())
    }

    async fn addresses(&self) -> Result<Vec<LinkAddress>, RouteError> {
        self.check("list addresses")?;
        Ok(self.lock().addresses.iter().copied().collect())
    }

    async fn ensure_dummy(&self, name: &str) -> Result<Link, RouteError> {
        let op = format!("device {name}: add dummy");
        self.check(&op)?;
        // IFNAMSIZ is 16 with the final NUL.
        if name.is_empty() || name.len() > 15 {
            return Err(refused(&op, Errno::EINVAL));
        }
        let mut inner = self.lock();
        match inner.links.iter().find(|link| link.name == name) {
            Some(link) if link.kind == "dummy" => Ok(link.clone()),
            Some(link) => {
                Err(RouteError::Conflict { name: name.to_owned(), found: link.kind.clone(), wanted: "dummy" })
            }
            None => Ok(inner.add_link(name, "dummy")),
        }
    }

    async fn remove_device(&self, name: &str) -> Result<(), RouteError> {
        self.check(&format!("device {name}: remove"))?;
        let mut inner = self.lock();
        if let Some(at) = inner.links.iter().position(|link| link.name == name) {
            let index = inner.links.remove(at).index;
            inner.addresses.retain(|address| address.link != index);
        }
        Ok(())
    }

    async fn set_up(&self, link: &Link, up: bool) -> Result<(), RouteError> {
        let op = format!("device {}: set {}", link.name, if up { "up" } else { "down" });
        self.check(&op)?;
        let mut inner = self.lock();
        let known = inner.links.iter_mut().find(|known| known.index == link.index);
        known.ok_or_else(|| refused(&op, Errno::ENODEV))?.up = up;
        Ok(())
    }

    async fn change_addresses(&self, link: &Link, ops: &[AddressOp]) -> Vec<Result<(), RouteError>> {
        let change = |op: &AddressOp| {
            let text = op.describe(link);
            self.check(&text)?;
            let mut inner = self.lock();
            if !inner.links.iter().any(|known| known.index == link.index) {
                return Err(refused(&text, Errno::ENODEV));
            }
            let addr = op.addr();
            let prefix = if addr.is_ipv6() { 128 } else { 32 };
            let address = LinkAddress { link: link.index, addr, prefix, link_local: false };
            match op {
                AddressOp::Ensure(_) => inner.addresses.insert(address),
                AddressOp::Remove(_) => inner.addresses.remove(&address),
            };
            Ok(())
        };
        ops.iter().map(change).collect()
    }

    async fn default_source(&self, family: IpFamily) -> Result<Option<IpAddr>, RouteError> {
        self.check("look up the default route")?;
        let inner = self.lock();
        let uplink =
            |address: &&LinkAddress| address.link == 2 && address.addr.is_ipv6() == (family == IpFamily::V6);
        Ok(inner
            .addresses
            .iter()
            .find(uplink)
            .map(|address| address.addr)
            .filter(|_| inner.has_default_route))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_come_and_go_and_a_missing_device_is_refused() {
        let routes = FakeRoutes::new(IpAddr::from([192, 168, 1, 5]));
        let link = routes.ensure_dummy("kube-ipvs0").await.unwrap();
        assert_eq!(routes.ensure_dummy("kube-ipvs0").await.unwrap(), link, "idempotent");
        let (a, b) = (IpAddr::from([10, 96, 0, 1]), IpAddr::from([10, 96, 0, 10]));
        routes.faults.script("add address 10.96.0.10", Errno::ENOMEM, 1);
        let outcomes = routes
            .change_addresses(&link, &[AddressOp::Ensure(a), AddressOp::Ensure(b), AddressOp::Ensure(a)])
            .await;
        assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
        assert_eq!(
            outcomes[1].as_ref().unwrap_err().to_string(),
            "device kube-ipvs0: add address 10.96.0.10"
        );
        assert!(outcomes[1].as_ref().unwrap_err().is_retryable());
        assert_eq!(routes.addresses_of("kube-ipvs0"), [a]);

        routes.remove_device("kube-ipvs0").await.unwrap();
        assert_eq!(routes.addresses_of("kube-ipvs0"), [] as [IpAddr; 0]);
        assert!(routes.change_addresses(&link, &[AddressOp::Ensure(a)]).await[0].is_err());
    }

    #[tokio::test]
    async fn a_device_of_another_kind_is_not_taken_over() {
        let routes = FakeRoutes::new(IpAddr::from([192, 168, 1, 5]));
        routes.add_link("kube-ipvs0", "bridge");
        let err = routes.ensure_dummy("kube-ipvs0").await.unwrap_err();
        assert!(err.to_string().contains("of kind \"bridge\", not \"dummy\""), "{err}");
        assert!(!err.is_retryable());
    }

    #[tokio::test]
    async fn the_default_source_is_the_uplinks() {
        let routes = FakeRoutes::new(IpAddr::from([192, 168, 1, 5]));
        let source = routes.default_source(IpFamily::V4).await.unwrap();
        assert_eq!(source, Some(IpAddr::from([192, 168, 1, 5])));
        routes.set_default_route(false);
        assert_eq!(routes.default_source(IpFamily::V4).await.unwrap(), None);
        assert_eq!(routes.default_source(IpFamily::V6).await.unwrap(), None);
    }
}

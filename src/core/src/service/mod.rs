//! Services as the dataplane sees them: what is served where, by which endpoints, under which policy.
//! Every rule about eligibility, traffic policies, affinity and health is decided here, once; the
//! back ends in `ruleset` only render it. No rule objects and no effects in here.

pub mod affinity;
pub mod allocate;
pub mod backends;
pub mod cidr;
pub mod eligibility;
pub mod env;
pub mod frontends;
pub mod health;
mod label_index;
pub mod problems;
pub mod select;
pub mod standalone;
pub mod table;
pub mod topology;
pub mod types;
pub mod view;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::ObjectKey;
use crate::ruleset::Protocol;

/// An address family; each is served by its own set of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(addr: std::net::IpAddr) -> Family {
        if addr.is_ipv6() { Family::V6 } else { Family::V4 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// One port of one Service. The protocol is part of it: DNS has `dns` twice over, by TCP and UDP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    pub service: ObjectKey,
    /// The port's name, empty where the Service's only port has none.
    pub port: Arc<str>,
    pub protocol: Protocol,
}

/// `default/web:http/tcp`; without the name where the port has none.
impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.port {
            "" => write!(f, "{}/{}", self.service, self.protocol),
            port => write!(f, "{}:{port}/{}", self.service, self.protocol),
        }
    }
}

/// A service port in one family: the unit that is decided, rendered and changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId {
    pub name: ServicePortName,
    pub family: Family,
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.family)
    }
}

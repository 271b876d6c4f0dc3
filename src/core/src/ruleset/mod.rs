//! Typed models of what the kernel holds for Services: IPVS tables and nf_tables objects, their
//! differences and the order in which changes are safe. No netlink here, and no Service rules:
//! which endpoint serves what is decided in `service`.

pub mod chains;
pub mod choice;
pub mod compare;
pub mod desired;
pub mod diff;
pub mod former;
pub mod ipt;
pub mod ipvs;
pub mod model;
pub mod nft;
pub mod node;
pub mod object;
pub mod offline;
mod places;
pub mod render_ipt;
pub mod render_ipvs;
pub mod render_ipvs_ipt;
pub mod render_nft;
mod stored;
pub mod text;
pub mod trace;

use std::fmt;

/// A transport protocol a Service port can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, IP protocol number 6.
    Tcp,
    /// UDP, IP protocol number 17.
    Udp,
    /// SCTP, IP protocol number 132.
    Sctp,
}

impl Protocol {
    /// Every protocol, in the order of their variants.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// The IP protocol number (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol with this IP protocol number, where it is one a Service can have.
    pub const fn from_number(number: u8) -> Option<Protocol> {
        match number {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            132 => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

#[cfg(test)]
pub(crate) mod world;

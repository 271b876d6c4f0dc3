//! An address prefix, and addresses as Services write them. Nothing about routing here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Family;

/// A prefix such as `10.96.0.0/12`; host bits are cleared when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    addr: IpAddr,
    prefix: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no CIDR: write an address, a slash and a prefix length, such as 10.96.0.0/12")]
pub struct BadCidr(pub String);

impl Cidr {
    /// `addr/prefix`; `None` where the prefix is longer than the address.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Cidr> {
        if prefix > Self::width(addr) {
            return None;
        }
        let addr = match addr {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4) & Self::mask(prefix, 32) as u32)),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & Self::mask(prefix, 128))),
        };
        Some(Cidr { addr, prefix })
    }

    /// The prefix that holds one address only.
    pub fn host(addr: IpAddr) -> Cidr {
        Cidr { addr, prefix: Self::width(addr) }
    }

    fn width(addr: IpAddr) -> u8 {
        if addr.is_ipv6() { 128 } else { 32 }
    }

    fn mask(prefix: u8, width: u8) -> u128 {
        if prefix == 0 { 0 } else { u128::MAX << (width - prefix) }
    }

    pub fn family(&self) -> Family {
        Family::of(self.addr)
    }

    /// The lowest address.
    pub fn first(&self) -> IpAddr {
        self.addr
    }

    /// The highest address.
    pub fn last(&self) -> IpAddr {
        match self.addr {
            IpAddr::V4(v4) => {
                IpAddr::V4(Ipv4Addr::from(u32::from(v4) | !(Self::mask(self.prefix, 32) as u32)))
            }
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) | !Self::mask(self.prefix, 128))),
        }
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The prefix from `first` to `last`, both included; `None` where that is no prefix.
    pub fn spanning(first: IpAddr, last: IpAddr) -> Option<Cidr> {
        let common = match (first, last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
            _ => return None,
        };
        let cidr = Cidr::new(first, u8::try_from(common).ok()?)?;
        (cidr.first() == first && cidr.last() == last).then_some(cidr)
    }

    pub fn contains(&self, addr: IpAddr) -> bool {
        Cidr::new(addr, self.prefix).is_some_and(|same| same == *self)
            && addr.is_ipv6() == self.addr.is_ipv6()
    }

    /// `0.0.0.0/0` or `::/0`: no restriction at all.
    pub fn is_zero(&self) -> bool {
        self.prefix == 0
    }
}

impl FromStr for Cidr {
    type Err = BadCidr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadCidr(text.to_owned());
        let (addr, prefix) = text.trim().split_once('/').ok_or_else(bad)?;
        let addr = parse_addr(addr).ok_or_else(bad)?;
        let prefix = prefix.parse().map_err(|_| bad())?;
        Cidr::new(addr, prefix).ok_or_else(bad)
    }
}

impl TryFrom<String> for Cidr {
    type Error = BadCidr;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// The same addresses without prefixes that lie in others, in order. Two prefixes are apart or one is
/// within the other, so that those left never overlap.
pub fn outermost(mut cidrs: Vec<Cidr>) -> Vec<Cidr> {
    // At the same first address the widest comes first.
    cidrs.sort_unstable();
    let mut kept: Vec<Cidr> = Vec::with_capacity(cidrs.len());
    for cidr in cidrs {
        if !kept.last().is_some_and(|outer| outer.contains(cidr.first())) {
            kept.push(cidr);
        }
    }
    kept
}

/// An address as old objects may carry it: octets with leading zeros are decimal, and an IPv4 address
/// in IPv6 clothes is IPv4, as the API server has always read them.
pub fn parse_addr(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if let Ok(addr) = text.parse::<IpAddr>() {
        return Some(addr.to_canonical());
    }
    let octets: Vec<u8> = text.split('.').map(decimal_octet).collect::<Option<_>>()?;
    <[u8; 4]>::try_from(octets).ok().map(IpAddr::from)
}

fn decimal_octet(text: &str) -> Option<u8> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.trim_start_matches('0'))?
        .parse()
        .or_else(|err| if text.bytes().all(|byte| byte == b'0') { Ok(0) } else { Err(err) })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_the_api_reads_them() {
        let cases = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.0.001", Some("10.0.0.1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            (" 10.0.0.1 ", Some("10.0.0.1")),
            ("10.0.0", None),
            ("10.0.0.256", None),
            ("10.0.0.", None),
            ("", None),
            ("None", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_addr(text).map(|addr| addr.to_string()).as_deref(), want, "{text:?}");
        }
    }

    #[test]
    fn prefixes_are_found_by_their_ends_and_kept_once() {
        let all =
            ["10.96.0.0/16", "fd00::/108", "10.96.1.0/24", "10.97.0.0/16", "10.96.0.0/12", "fd00::7/128"];
        let parsed = all.map(|text| text.parse::<Cidr>().unwrap());
        for cidr in parsed {
            assert_eq!(Cidr::spanning(cidr.first(), cidr.last()), Some(cidr));
        }
        assert_eq!(
            outermost(parsed.to_vec()),
            ["10.96.0.0/12", "fd00::/108"].map(|text| text.parse().unwrap())
        );
        let ends = |first: &str, last: &str| Cidr::spanning(first.parse().unwrap(), last.parse().unwrap());
        for (first, last) in [("10.0.0.1", "10.0.0.2"), ("10.0.0.0", "10.0.0.6"), ("10.0.0.0", "fd00::")] {
            assert_eq!(ends(first, last), None, "{first} {last}");
        }
    }

    #[test]
    fn prefixes_hold_what_they_should() {
        let cidr: Cidr = "10.96.7.9/12".parse().unwrap();
        assert_eq!(cidr.to_string(), "10.96.0.0/12");
        assert_eq!(cidr.last().to_string(), "10.111.255.255");
        assert!(cidr.contains("10.111.255.255".parse().unwrap()));
        assert!(!cidr.contains("10.112.0.0".parse().unwrap()));
        assert!(!cidr.contains("fd00::1".parse().unwrap()));
        let six: Cidr = "fd00:10::/108".parse().unwrap();
        assert!(six.contains("fd00:10::f:ffff".parse().unwrap()));
        assert!(!six.contains("fd00:10::10:0".parse().unwrap()));
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().is_zero());
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/x", "/8", "fd00::/129"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}

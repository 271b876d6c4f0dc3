//! What another proxy left in the kernel, or another mode of ours: which virtual servers, addresses and
//! iptables chains nobody wants any more, and in which order they may go. New connections are served by
//! the mode in force when this is asked; established ones keep what carries them until they end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use super::Protocol;
use super::ipt::{Match, Target, parse, tree};
use super::ipvs::{Connections, IpvsOp, IpvsState, RealServerKey, VirtualServerKey};
use super::render_ipt;
use super::render_ipvs_ipt;
use crate::service::cidr::Cidr;

/// Node ports as every control plane gives them by default; on a host's own address only virtual
/// servers among these are a proxy's.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Chains kube-proxy makes by fixed names, in iptables and in IPVS mode.
const KUBE_PROXY_CHAINS: [&str; 16] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-EXTERNAL-IP",
    "KUBE-NODEPORT-NON-LOCAL",
];
/// Chains kube-proxy makes one by one for Services and endpoints.
const KUBE_PROXY_PREFIXES: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"];

/// Whether kube-proxy made the chain. The kubelet's own (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`,
/// `KUBE-IPTABLES-HINT`) are not among them.
pub fn is_kube_proxys(chain: &str) -> bool {
    KUBE_PROXY_CHAINS.contains(&chain) || KUBE_PROXY_PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// What takes chains out of iptables, as a text for `iptables-restore --noflush`; `None` where `saved`
/// (the output of `iptables-save`) has none of them. Rules that lead to them go first, so that no packet
/// meets a chain half taken apart; connections that were translated stay so.
pub fn without_chains(saved: &str, gone: impl Fn(&str) -> bool) -> Option<String> {
    let mut out = String::new();
    for table in tables(saved) {
        let chains: Vec<&str> = table.chains.iter().copied().filter(|chain| gone(chain)).collect();
        if chains.is_empty() {
            continue;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(out, "*{}", table.name);
        for rule in &table.rules {
            let leads_there = !gone(rule.chain) && rule.target.is_some_and(&gone);
            if leads_there {
                let _ = writeln!(out, "-D {}", rule.text);
            }
        }
        // Emptied first: they lead to each other.
        for chain in &chains {
            let _ = writeln!(out, "-F {chain}");
        }
        for chain in &chains {
            let _ = writeln!(out, "-X {chain}");
        }
        out.push_str("COMMIT\n");
    }
    (!out.is_empty()).then_some(out)
}

struct SavedTable<'a> {
    name: &'a str,
    chains: Vec<&'a str>,
    rules: Vec<SavedRule<'a>>,
}

struct SavedRule<'a> {
    chain: &'a str,
    /// Everything after `-A `.
    text: &'a str,
    target: Option<&'a str>,
}

fn tables(saved: &str) -> Vec<SavedTable<'_>> {
    let mut tables: Vec<SavedTable<'_>> = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(SavedTable { name, chains: Vec::new(), rules: Vec::new() });
        }
        let Some(table) = tables.last_mut() else { continue };
        if let Some(chain) = line.strip_prefix(':') {
            table.chains.extend(chain.split(' ').next());
        } else if let Some(text) = line.strip_prefix("-A ") {
            let chain = text.split(' ').next().unwrap_or_default();
            table.rules.push(SavedRule { chain, text, target: target(text) });
        }
    }
    tables
}

/// The chain a rule leads to: the word after the last `-j` or `-g` outside quotes.
fn target(rule: &str) -> Option<&str> {
    let mut quoted = false;
    let mut words = Vec::new();
    for word in rule.split(' ') {
        if !quoted {
            words.push(word);
        }
        let quotes = word.matches('"').count() - word.matches("\\\"").count();
        quoted ^= quotes % 2 == 1;
    }
    let at = words.iter().rposition(|word| matches!(*word, "-j" | "-g"))?;
    words.get(at + 1).copied()
}

/// Frontends and addresses that our chains around virtual servers name, as `iptables-save` shows them; none
/// where iptables mode made the chains.
pub fn served_by_ipvs(saved: &str) -> (BTreeSet<Frontend>, BTreeSet<IpAddr>) {
    let (mut frontends, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    let tables = tables(saved);
    let mangle = tables.iter().find(|table| table.name == "mangle");
    if mangle.is_none_or(|table| !table.chains.contains(&render_ipvs_ipt::SERVICES.as_str())) {
        return (frontends, addresses);
    }
    for rule in tables.iter().flat_map(|table| &table.rules) {
        let ours = rule.text.starts_with(tree::ADDRESS_STEM);
        let Some(rule) = parse::rule(rule.text.split_once(' ').unwrap_or_default().1).filter(|_| ours) else {
            continue;
        };
        let at = rule.matches.iter().find_map(|one| match one {
            Match::Destination { within, not: false } if *within == Cidr::host(within.first()) => {
                Some(within.first())
            }
            _ => None,
        });
        let port = rule.matches.iter().find_map(|one| match one {
            Match::Ports(protocol, first, _) => Some((*first, *protocol)),
            _ => None,
        });
        match (at, port) {
            (Some(addr), Some((port, protocol))) => drop(frontends.insert((addr, port, protocol))),
            (Some(addr), None) if rule.target == Target::Jump(render_ipt::REJECT) => {
                addresses.insert(addr);
            }
            _ => {}
        }
    }
    (frontends, addresses)
}

/// A virtual server that belongs to nobody who is still there.
pub type Frontend = (IpAddr, u16, Protocol);

/// What is known when virtual servers without an owner are looked for.
#[derive(Clone, Debug, Default)]
pub struct IpvsScene {
    pub state: IpvsState,
    pub connections: BTreeMap<(VirtualServerKey, RealServerKey), Connections>,
    /// Addresses of the Services' dummy device.
    pub device: BTreeSet<IpAddr>,
    /// Whether that device is there at all: without it no proxy has served by IPVS.
    pub has_device: bool,
    /// The host's other addresses.
    pub host: BTreeSet<IpAddr>,
    /// Frontends our own tables have.
    pub ours: BTreeSet<Frontend>,
    /// Somebody else's (`excludeCIDRs`).
    pub exclude: Vec<Cidr>,
}

/// What to do with IPVS now that another mode serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpvsLeave {
    pub ops: Vec<IpvsOp>,
    /// Addresses to take off the device.
    pub addresses: Vec<IpAddr>,
    /// Nothing is left on the device.
    pub remove_device: bool,
    /// Virtual servers kept for connections that go on.
    pub kept: usize,
}

/// Which virtual servers were a proxy's.
fn belongs(scene: &IpvsScene, key: &VirtualServerKey) -> bool {
    let VirtualServerKey::Address { addr, port, protocol } = key else { return false };
    let excluded = scene.exclude.iter().any(|cidr| cidr.contains(*addr));
    let served = scene.ours.contains(&(*addr, *port, *protocol));
    let on_device = scene.device.contains(addr);
    let node_port = scene.has_device && scene.host.contains(addr) && NODE_PORTS.contains(port);
    !excluded && (served || on_device || node_port)
}

/// The next step away from IPVS. Virtual servers without a connection go, and those of UDP and SCTP,
/// which have no end to wait for; the others take no new connection and stay until theirs are over,
/// with the addresses their packets come by. `at_once` waits for nothing.
pub fn leave_ipvs(scene: &IpvsScene, at_once: bool) -> IpvsLeave {
    let mut leave = IpvsLeave::default();
    let mut needed: BTreeSet<IpAddr> = BTreeSet::new();
    for (key, service) in scene.state.services.iter().filter(|(key, _)| belongs(scene, key)) {
        let VirtualServerKey::Address { addr, protocol, .. } = key else { continue };
        let busy = |real: &RealServerKey| {
            scene.connections.get(&(*key, *real)).is_some_and(|connections| !connections.is_drained())
        };
        if at_once || *protocol != Protocol::Tcp || !service.reals.keys().any(busy) {
            leave.ops.push(IpvsOp::DelService { key: *key });
            continue;
        }
        leave.kept += 1;
        needed.insert(*addr);
        for (real, settings) in service.reals.iter().filter(|(_, settings)| settings.weight > 0) {
            leave.ops.push(IpvsOp::SetDest { key: *key, real: *real, settings: settings.drained() });
        }
    }
    leave.addresses = scene.device.iter().filter(|addr| !needed.contains(addr)).copied().collect();
    leave.remove_device = scene.has_device && leave.addresses.len() == scene.device.len();
    leave
}

#[cfg(test)]
mod tests {
    use super::super::ipvs::{IpvsService, RealServer, Scheduler, VirtualServer};
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save v1.8.9
*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:INPUT ACCEPT [10:100]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes -j KUBE-FIREWALL rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-AAAA - [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j MINE
-A MINE -g KUBE-SVC-AAAA
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -j KUBE-SVC-AAAA
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
-A PREROUTING -m comment --comment "odd \" quote -j KUBE-SERVICES" -j ACCEPT
COMMIT
"#;

    #[test]
    fn chains_of_kube_proxy_go_and_everything_else_stays() {
        let want = r#"*mangle
-F KUBE-PROXY-CANARY
-X KUBE-PROXY-CANARY
COMMIT
*filter
-D FORWARD -m comment --comment "kubernetes -j KUBE-FIREWALL rules" -j KUBE-FORWARD
-F KUBE-FORWARD
-X KUBE-FORWARD
COMMIT
*nat
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-D MINE -g KUBE-SVC-AAAA
-F KUBE-SERVICES
-F KUBE-SVC-AAAA
-X KUBE-SERVICES
-X KUBE-SVC-AAAA
COMMIT
"#;
        assert_eq!(without_chains(SAVED, is_kube_proxys).as_deref(), Some(want));
        assert_eq!(without_chains(SAVED, |chain| chain.starts_with("LONGSHORE-")), None);
        assert_eq!(without_chains("", is_kube_proxys), None);
    }

    proptest::proptest! {
        #[test]
        fn any_saved_text_is_survived(text in "[-*:A-Z\" \\\\\nj]{0,80}") {
            let _ = without_chains(&text, is_kube_proxys);
        }
    }

    #[test]
    fn what_our_chains_around_virtual_servers_name_is_ours() {
        use super::super::ipt::text::Restore;
        use super::super::world::{World, chain_config};
        let spec = serde_json::json!({"type": "NodePort", "clusterIP": "10.96.0.1",
            "ports": [{"name": "p", "port": 80, "nodePort": 30080}]});
        let named = |mut world: World| {
            let ops = world.service("web", spec.clone(), &[]).endpoints("web", &["10.244.1.1"]).plan(true);
            served_by_ipvs(&Restore::of(false, &ops).text)
        };
        let (frontends, addresses) = named(World::ipvs_by_iptables(chain_config()));
        assert!(frontends.contains(&(addr("10.96.0.1"), 80, Protocol::Tcp)), "{frontends:?}");
        assert!(frontends.contains(&(addr("192.168.0.1"), 30_080, Protocol::Tcp)), "{frontends:?}");
        assert_eq!(addresses, BTreeSet::from([addr("10.96.0.1")]));
        assert_eq!(named(World::iptables(chain_config())), Default::default());
    }

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Virtual servers by `address port protocol`, each with one real server with so many connections.
    fn scene(servers: &[(&str, u16, Protocol, u32)]) -> IpvsScene {
        let mut scene = IpvsScene {
            device: BTreeSet::from([addr("10.96.0.1"), addr("10.96.0.2")]),
            has_device: true,
            host: BTreeSet::from([addr("192.168.0.1")]),
            ours: BTreeSet::from([(addr("198.51.100.9"), 80, Protocol::Tcp)]),
            exclude: vec!["203.0.113.0/24".parse().unwrap()],
            ..IpvsScene::default()
        };
        for (at, port, protocol, active) in servers {
            let key = VirtualServerKey::new(addr(at), *port, *protocol);
            let real = RealServerKey::new(addr("10.244.1.1"), 8080);
            let reals = BTreeMap::from([(real, RealServer::default())]);
            let server = VirtualServer::new(&key, Scheduler::Rr);
            scene.state.services.insert(key, IpvsService { server, reals });
            let connections = Connections { active: *active, ..Connections::default() };
            scene.connections.insert((key, real), connections);
        }
        scene
    }

    #[test]
    fn virtual_servers_leave_when_their_connections_are_over() {
        use Protocol::{Tcp, Udp};
        // What is there; operations, addresses that go, whether the device goes, how many stay.
        type Case<'a> = (&'a [(&'a str, u16, Protocol, u32)], &'a [&'a str], &'a [&'a str], bool, usize);
        let cases: &[Case<'_>] = &[
            (&[], &[], &["10.96.0.1", "10.96.0.2"], true, 0),
            (
                &[("10.96.0.1", 80, Tcp, 0), ("10.96.0.1", 53, Udp, 5)],
                &["ipvs 10.96.0.1:53/udp: delete service", "ipvs 10.96.0.1:80/tcp: delete service"],
                &["10.96.0.1", "10.96.0.2"],
                true,
                0,
            ),
            (
                &[("10.96.0.1", 80, Tcp, 1), ("10.96.0.2", 80, Tcp, 0)],
                &[
                    "ipvs 10.96.0.1:80/tcp: set destination 10.244.1.1:8080 to weight 0",
                    "ipvs 10.96.0.2:80/tcp: delete service",
                ],
                &["10.96.0.2"],
                false,
                1,
            ),
            // A node port, one that only our table knows; an LVS of somebody else's, and an excluded one.
            (
                &[
                    ("192.168.0.1", 30_080, Tcp, 0),
                    ("198.51.100.9", 80, Tcp, 0),
                    ("192.168.0.1", 443, Tcp, 0),
                    ("198.51.100.7", 80, Tcp, 0),
                    ("203.0.113.7", 80, Tcp, 0),
                ],
                &["ipvs 192.168.0.1:30080/tcp: delete service", "ipvs 198.51.100.9:80/tcp: delete service"],
                &["10.96.0.1", "10.96.0.2"],
                true,
                0,
            ),
        ];
        for (servers, ops, addresses, remove_device, kept) in cases {
            let leave = leave_ipvs(&scene(servers), false);
            let texts: Vec<String> = leave.ops.iter().map(ToString::to_string).collect();
            let mut texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            texts.sort_unstable();
            assert_eq!(texts, *ops);
            let gone: Vec<String> = leave.addresses.iter().map(ToString::to_string).collect();
            assert_eq!(
                (gone, leave.remove_device, leave.kept),
                (addresses.iter().map(|a| (*a).to_owned()).collect(), *remove_device, *kept)
            );
        }
        let busy = scene(&[("10.96.0.1", 80, Tcp, 9)]);
        let leave = leave_ipvs(&busy, true);
        assert_eq!(
            (leave.ops.len(), leave.kept, leave.remove_device),
            (1, 0, true),
            "clean-up does not wait"
        );
        let mut other = scene(&[("192.168.0.1", 30_080, Tcp, 0)]);
        (other.has_device, other.device) = (false, BTreeSet::new());
        assert_eq!(leave_ipvs(&other, true), IpvsLeave::default(), "no proxy was here");
    }
}

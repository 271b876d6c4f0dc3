//! Takes out of the kernel what another proxy, or another mode of ours, left there, once what serves now
//! is complete; and, for `--cleanup`, everything of ours. Which objects those are is decided in
//! `longshore_core::ruleset::former`; each removal is named, and can be shown without being done.

use std::collections::BTreeSet;
use std::fmt;

use longshore_core::ruleset::former::{self, Frontend, IpvsLeave, IpvsScene};
use longshore_core::ruleset::nft::{Family, NftBatch, NftOp, TableKey};
use longshore_core::ruleset::object::{self, Claim, DEVICE, ObjectKey, TABLE};
use longshore_core::service::cidr::Cidr;
use longshore_kernel::ipvs::Ipvs;
use longshore_kernel::route::{AddressOp, Link};
use longshore_kernel::xtables::{Which, Xtables};

use super::kernel::{Kernel, in_full, table_key};

/// kube-proxy's tables in nftables mode.
const KUBE_PROXY_TABLE: &str = "kube-proxy";
/// How chains of our iptables mode begin.
const OUR_CHAINS: &str = "LONGSHORE-";

/// What is to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unwanted {
    /// Tables and iptables chains of kube-proxy.
    pub(super) kube_proxy: bool,
    /// Our nf_tables tables.
    pub(super) our_tables: bool,
    /// Chains of our iptables mode.
    pub(super) our_chains: bool,
    /// Virtual servers and the dummy device.
    pub(super) ipvs: Option<IpvsGoes>,
}

/// How IPVS goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IpvsGoes {
    /// Another mode serves: whatever a proxy left, as connections end.
    Gently,
    /// Ours alone, and at once.
    OursAtOnce,
}

/// One thing to take out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    Table(TableKey),
    Chains { which: Which, text: String },
    Ipvs(Box<IpvsLeave>, Option<Link>),
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Removal::Table(table) => write!(f, "nftables table {table}"),
            Removal::Chains { which, text } => {
                let count = text.lines().filter(|line| line.starts_with("-X ")).count();
                write!(f, "{count} chains of {}", which.program())
            }
            Removal::Ipvs(leave, _) => {
                let servers = leave.ops.len();
                write!(f, "{servers} changes of IPVS, {} addresses of {DEVICE}", leave.addresses.len())?;
                if leave.remove_device { write!(f, ", {DEVICE} itself") } else { Ok(()) }
            }
        }
    }
}

/// What a look found.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) removals: Vec<Removal>,
    /// What could not be looked at, one sentence each.
    pub(super) problems: Vec<String>,
    /// Virtual servers that wait for their last connection.
    pub(super) kept: usize,
}

/// Look for what is to go. IPVS comes first: our tables tell which virtual servers are ours.
pub(super) async fn find(
    kernel: &Kernel,
    xtables: Option<&dyn Xtables>,
    unwanted: Unwanted,
    exclude: &[Cidr],
) -> Found {
    let mut found = Found::default();
    if let (Some(goes), Ok(ipvs)) = (unwanted.ipvs, &kernel.ipvs)
        && let Err(problem) = find_ipvs((kernel, xtables), ipvs.as_ref(), (goes, exclude), &mut found).await
    {
        found.problems.push(problem);
    }
    match kernel.nft.tables().await {
        Ok(tables) => found.removals.extend(tables.into_iter().filter_map(|table| {
            let family = matches!(table.family, Family::Ip | Family::Ip6);
            let theirs = unwanted.kube_proxy && table.name == KUBE_PROXY_TABLE;
            let ours = unwanted.our_tables && table.name == TABLE;
            (family && (theirs || ours)).then_some(Removal::Table(table))
        })),
        Err(error) => found.problems.push(in_full(&error)),
    }
    let Some(xtables) = xtables.filter(|_| unwanted.kube_proxy || unwanted.our_chains) else { return found };
    let gone = |chain: &str| {
        // iptables mode keeps what other programs jump to, whoever made it.
        let kept = !unwanted.our_chains && chain == "KUBE-MARK-MASQ";
        (unwanted.kube_proxy && !kept && former::is_kube_proxys(chain))
            || (unwanted.our_chains && chain.starts_with(OUR_CHAINS))
    };
    for which in Which::ALL {
        match xtables.save(which).await {
            Ok(saved) => {
                let text = former::without_chains(&saved, gone);
                found.removals.extend(text.map(|text| Removal::Chains { which, text }));
            }
            Err(error) => found.problems.push(in_full(&error)),
        }
    }
    found
}

async fn find_ipvs(
    (kernel, xtables): (&Kernel, Option<&dyn Xtables>),
    ipvs: &dyn Ipvs,
    (goes, exclude): (IpvsGoes, &[Cidr]),
    found: &mut Found,
) -> Result<(), String> {
    let dump = ipvs.dump().await.map_err(|error| in_full(&error))?;
    let link = kernel.routes.link(DEVICE).await.map_err(|error| in_full(&error))?;
    if dump.state.services.is_empty() && link.is_none() {
        return Ok(());
    }
    let (ours, our_addresses) = ours(kernel, xtables).await?;
    let addresses = kernel.routes.addresses().await.map_err(|error| in_full(&error))?;
    let mut scene = IpvsScene {
        state: dump.state,
        connections: dump.connections,
        has_device: link.is_some(),
        ours,
        exclude: exclude.to_vec(),
        ..IpvsScene::default()
    };
    for address in addresses.iter().filter(|address| !address.link_local) {
        if link.as_ref().is_some_and(|link| link.index == address.link) {
            scene.device.insert(address.addr);
        } else {
            scene.host.insert(address.addr);
        }
    }
    let at_once = goes == IpvsGoes::OursAtOnce;
    let mut others = false;
    if at_once {
        others = scene.device.iter().any(|addr| !our_addresses.contains(addr));
        scene.device.retain(|addr| our_addresses.contains(addr));
        scene.host.clear();
    }
    let mut leave = former::leave_ipvs(&scene, at_once);
    leave.remove_device &= !others && (!at_once || !our_addresses.is_empty());
    found.kept = leave.kept;
    if !leave.ops.is_empty() || !leave.addresses.is_empty() || leave.remove_device {
        found.removals.insert(0, Removal::Ipvs(Box::new(leave), link));
    }
    Ok(())
}

/// Frontends and addresses that our own tables name, and where there is no nf_tables, our chains.
async fn ours(
    kernel: &Kernel,
    xtables: Option<&dyn Xtables>,
) -> Result<(BTreeSet<Frontend>, BTreeSet<std::net::IpAddr>), String> {
    let (mut frontends, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for ipv6 in [false, true] {
        let dump = kernel.nft.dump(&table_key(ipv6), &[]).await.map_err(|error| in_full(&error))?;
        let Some(table) = dump.table else { continue };
        for claim in object::of_table(&table, ipv6).keys().filter_map(ObjectKey::claim) {
            match claim {
                Claim::Frontend { addr, port, protocol } => drop(frontends.insert((addr, port, protocol))),
                Claim::Address(addr) => drop(addresses.insert(addr)),
                _ => {}
            }
        }
    }
    let by_chains = frontends.is_empty() && addresses.is_empty();
    let Some(xtables) = xtables.filter(|_| by_chains) else { return Ok((frontends, addresses)) };
    for which in Which::ALL {
        let saved = xtables.save(which).await.map_err(|error| in_full(&error))?;
        let (served, held) = former::served_by_ipvs(&saved);
        frontends.extend(served);
        addresses.extend(held);
    }
    Ok((frontends, addresses))
}

/// Take one thing out.
///
/// # Errors
/// What the kernel or a program said, one sentence.
pub(super) async fn remove(
    kernel: &Kernel,
    xtables: Option<&dyn Xtables>,
    removal: &Removal,
) -> Result<(), String> {
    match removal {
        Removal::Table(table) => {
            let batch = NftBatch { table: table.clone(), ops: vec![NftOp::DelTable] };
            kernel.nft.apply(&batch, None).await.map_err(|error| in_full(&error))
        }
        Removal::Chains { which, text } => match xtables {
            Some(xtables) => xtables.restore(*which, text).await.map_err(|error| in_full(&error)),
            None => Ok(()),
        },
        Removal::Ipvs(leave, link) => leave_ipvs(kernel, leave, link.as_ref()).await,
    }
}

async fn leave_ipvs(kernel: &Kernel, leave: &IpvsLeave, link: Option<&Link>) -> Result<(), String> {
    let ipvs = kernel.ipvs.as_ref().map_err(|error| in_full(error))?;
    for outcome in ipvs.apply(&leave.ops).await {
        match outcome {
            // Somebody else was faster.
            Err(error) if error.is_drift() => {}
            outcome => outcome.map_err(|error| in_full(&error))?,
        }
    }
    let Some(link) = link else { return Ok(()) };
    if leave.remove_device {
        return kernel.routes.remove_device(DEVICE).await.map_err(|error| in_full(&error));
    }
    let ops: Vec<AddressOp> = leave.addresses.iter().copied().map(AddressOp::Remove).collect();
    for outcome in kernel.routes.change_addresses(link, &ops).await {
        outcome.map_err(|error| in_full(&error))?;
    }
    Ok(())
}

/// Everything of ours in this network namespace, taken out or only named; what was met on the way.
///
/// # Errors
/// What could not be looked at or taken out, one line each.
pub async fn cleanup(
    kernel: &Kernel,
    xtables: &dyn Xtables,
    exclude: &[Cidr],
    dry_run: bool,
) -> Result<Vec<String>, String> {
    let unwanted =
        Unwanted { kube_proxy: false, our_tables: true, our_chains: true, ipvs: Some(IpvsGoes::OursAtOnce) };
    let found = find(kernel, Some(xtables), unwanted, exclude).await;
    let mut problems = found.problems;
    let mut done = Vec::new();
    for removal in found.removals {
        if !dry_run && let Err(error) = remove(kernel, Some(xtables), &removal).await {
            problems.push(format!("{removal}: {error}"));
            continue;
        }
        done.push(removal.to_string());
    }
    if problems.is_empty() { Ok(done) } else { Err(problems.join("\n")) }
}

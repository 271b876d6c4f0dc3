//! The kernel as the dataplane uses it: read everything back as objects, carry operations out in the
//! order given, and say of each whether it was acknowledged. Nothing is decided here.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use longshore_core::conntrack::Flow;
use longshore_core::ruleset::diff::{Change, Op};
use longshore_core::ruleset::ipvs::VirtualServerKey;
use longshore_core::ruleset::nft::{self, Element, ElementKey, Family, NftBatch, NftOp, NftTable, TableKey};
use longshore_core::ruleset::node::HostAddress;
use longshore_core::ruleset::object::{self, DEVICE, ObjectKey, ObjectValue, Objects, SetId, Spread, TABLE};
use longshore_core::service::cidr::Cidr;
use longshore_kernel::iptables::{Iptables, IptablesError};
use longshore_kernel::ipvs::{Ipvs, IpvsError, RealIpvs};
use longshore_kernel::modules::Modules;
use longshore_kernel::nft::{Guess, MissingNft, Nft, NftDump, NftError, RealNft};
use longshore_kernel::route::{AddressOp, LOOPBACK, Link, RealRoutes, RouteError, Routes};
use longshore_kernel::sysctl::{RealSysctls, Sysctls};
use longshore_kernel::xtables::Xtables;

use super::iptables::OpenIptables;

/// The most operations in one conversation with the kernel: bounds the time others wait for its locks.
const MAX_BATCH: usize = 1024;

/// The connection tracker's UDP flows.
#[async_trait]
pub trait UdpFlows: Send + Sync {
    /// Every UDP flow; the error is one sentence.
    async fn flows(&self) -> Result<Vec<Flow>, String>;

    /// Forget flows, each with an outcome of its own; one that is gone already is a success.
    async fn forget(&self, flows: &[Flow]) -> Vec<Result<(), String>>;
}

/// The kernel interfaces the dataplane needs.
#[derive(Clone)]
pub struct Kernel {
    /// Why there is none, where there is none.
    pub ipvs: Result<Arc<dyn Ipvs>, IpvsError>,
    pub nft: Arc<dyn Nft>,
    pub routes: Arc<dyn Routes>,
    /// `None` where the connection tracker cannot be reached: stale UDP flows then stay.
    pub flows: Option<Arc<dyn UdpFlows>>,
    pub sysctls: Arc<dyn Sysctls>,
}

impl Kernel {
    /// The kernel of the calling thread's network namespace.
    ///
    /// # Errors
    /// Where rtnetlink cannot be used, or nf_tables not now; IPVS may be missing, and nf_tables too.
    pub fn open(flows: Option<Arc<dyn UdpFlows>>) -> Result<Self, KernelError> {
        let nft: Arc<dyn Nft> = match RealNft::open() {
            Ok(nft) => Arc::new(nft),
            Err(why) if why.is_missing() => Arc::new(MissingNft::new(why)),
            Err(error) => return Err(error.into()),
        };
        Ok(Kernel {
            ipvs: RealIpvs::open().map(|ipvs| Arc::new(ipvs) as Arc<dyn Ipvs>),
            nft,
            routes: Arc::new(RealRoutes::open()?),
            flows,
            sysctls: Arc::new(RealSysctls::default()),
        })
    }

    /// A fake one of a node with this address: nf_tables, and no IPVS nor connection tracker.
    #[cfg(test)]
    pub(crate) fn fake(nft: Arc<longshore_kernel::nft::FakeNft>, address: std::net::IpAddr) -> Self {
        use longshore_kernel::netlink::{NetlinkError, Refusal};
        let no_ipvs = NetlinkError::Refused(Refusal::new(nix::errno::Errno::ENOENT));
        Kernel {
            ipvs: Err(IpvsError::Unavailable(no_ipvs)),
            nft,
            routes: Arc::new(longshore_kernel::route::FakeRoutes::new(address)),
            flows: None,
            sysctls: Arc::new(longshore_kernel::sysctl::FakeSysctls::new(&[("net/ipv4/ip_forward", "1")])),
        }
    }
}

/// Opens the kernel's interfaces; asked again while they are missing, so that a module loaded later is
/// found without a restart.
#[derive(Clone)]
pub struct OpenKernel {
    open: Arc<dyn Fn() -> Result<Kernel, KernelError> + Send + Sync>,
    modules: Option<Arc<dyn Modules>>,
    xtables: Option<Arc<dyn Xtables>>,
    iptables: Option<OpenIptables>,
}

impl OpenKernel {
    pub fn new(open: impl Fn() -> Result<Kernel, KernelError> + Send + Sync + 'static) -> Self {
        OpenKernel { open: Arc::new(open), modules: None, xtables: None, iptables: None }
    }

    /// Load missing kernel modules first, where this process may.
    pub fn loading(mut self, modules: Arc<dyn Modules>) -> Self {
        self.modules = Some(modules);
        self
    }

    /// Take iptables chains of another proxy out with these programs.
    pub fn clearing(mut self, xtables: Arc<dyn Xtables>) -> Self {
        self.xtables = Some(xtables);
        self
    }

    /// Serve by these where mode iptables is asked for, or nothing else works.
    pub fn with_iptables(mut self, iptables: OpenIptables) -> Self {
        self.iptables = Some(iptables);
        self
    }

    pub(super) async fn iptables(&self, nf_tables: bool) -> Result<Arc<dyn Iptables>, String> {
        match &self.iptables {
            Some(open) => open.open(nf_tables).await.map_err(|error| in_full(&error)),
            None => Err("there are no programs for it".to_owned()),
        }
    }

    pub(super) fn xtables(&self) -> Option<Arc<dyn Xtables>> {
        self.xtables.clone()
    }

    /// Open after loading these modules, where this process may.
    pub(super) async fn open(&self, wanted: &[&str]) -> Result<Kernel, KernelError> {
        if let Some(modules) = &self.modules {
            for name in wanted {
                // What is still missing is named by what then fails to open.
                if let Err(error) = modules.ensure(name).await {
                    tracing::debug!(module = name, %error, "kernel module not loaded");
                }
            }
        }
        (self.open)()
    }
}

impl std::fmt::Debug for OpenKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenKernel").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

/// Why the kernel did not do something; transparent, since the kernel crate's errors name the object.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KernelError {
    #[error(transparent)]
    Ipvs(#[from] IpvsError),
    #[error(transparent)]
    Nft(#[from] NftError),
    #[error(transparent)]
    Routes(#[from] RouteError),
    #[error(transparent)]
    Iptables(#[from] IptablesError),
    /// No way to serve Services works.
    #[error("{0}")]
    NoMode(String),
    /// Something it stands on failed before.
    #[error("waits for {0}")]
    Waits(String),
}

impl KernelError {
    /// The kernel is not as believed: look before trying again.
    pub fn is_drift(&self) -> bool {
        match self {
            KernelError::Ipvs(IpvsError::NoAnswer { .. }) => true,
            KernelError::Ipvs(error) => error.is_drift(),
            KernelError::Nft(error) => error.is_drift(),
            KernelError::Iptables(error) => error.is_drift(),
            KernelError::Routes(RouteError::NoAnswer { .. }) => true,
            KernelError::Routes(_) | KernelError::NoMode(_) | KernelError::Waits(_) => false,
        }
    }
}

/// An error with every cause, in one line.
pub(super) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What the kernel holds of ours.
#[derive(Debug, Default)]
pub(super) struct Dump {
    pub(super) objects: Objects,
    /// Our tables without those objects, IPv4 and IPv6; `None` where there is none.
    pub(super) tables: [Option<NftTable>; 2],
}

impl Dump {
    fn take(&mut self, mut read: NftDump, ipv6: bool) {
        if let Some(table) = &mut read.table {
            self.objects.extend(object::take_objects(table, ipv6));
        }
        self.tables[usize::from(ipv6)] = read.table;
    }
}

pub(super) fn table_key(ipv6: bool) -> TableKey {
    TableKey::new(if ipv6 { Family::Ip6 } else { Family::Ip }, TABLE)
}

impl Kernel {
    /// Read everything back, IPVS and the device's addresses where `device` is given. Virtual servers within
    /// `exclude` are somebody else's. Of the tables, IPv4 and IPv6, a right guess makes it cheap.
    pub(super) async fn dump(
        &self,
        device: Option<&Link>,
        exclude: &[Cidr],
        ipv6: bool,
        guesses: [Guess; 2],
    ) -> Result<Dump, KernelError> {
        let mut dump = Dump::default();
        if let Some(link) = device {
            dump.objects = self.dump_ipvs(link, exclude).await?;
        }
        for (family, guess) in [false, true].into_iter().zip(guesses).filter(|(family, _)| ipv6 || !family) {
            dump.take(self.nft.dump_guessed(&table_key(family), guess).await?, family);
        }
        Ok(dump)
    }

    /// Our tables without what grows with Services; its objects are the chains that spread, with their
    /// elements.
    pub(super) async fn outline(&self, ipv6: bool) -> Result<Dump, KernelError> {
        let growing: Vec<&str> = SetId::ALL.into_iter().filter(|set| set.grows()).map(SetId::name).collect();
        let mut dump = Dump::default();
        for family in [false, true].into_iter().filter(|family| ipv6 || !family) {
            dump.take(self.nft.dump(&table_key(family), &growing).await?, family);
        }
        Ok(dump)
    }

    /// Virtual and real servers, and the device's addresses.
    pub(super) async fn dump_ipvs(&self, link: &Link, exclude: &[Cidr]) -> Result<Objects, KernelError> {
        let mut ipvs = self.ipvs.as_ref().map_err(Clone::clone)?.dump().await?.state;
        ipvs.services.retain(|key, _| !is_excluded(key, exclude));
        let mut objects = object::of_ipvs(&ipvs);
        for address in self.routes.addresses().await? {
            if address.link == link.index && !address.link_local {
                objects.insert(ObjectKey::Address(address.addr), ObjectValue::Address);
            }
        }
        Ok(objects)
    }

    /// Whether the kernel takes the chains that nftables mode needs: written to a table of their own
    /// that no packet passes, and taken away again.
    pub(super) async fn probe_nftables(&self, wanted: &NftTable) -> Result<(), NftError> {
        let table = TableKey::new(Family::Ip, format!("{TABLE}-probe"));
        if self.nft.tables().await?.contains(&table_key(false)) {
            // An earlier run was served by them.
            return Ok(());
        }
        let mut tried = object::skeleton(wanted);
        tried.chains.values_mut().for_each(|chain| chain.base = None);
        let remove = NftBatch { table: table.clone(), ops: vec![NftOp::DelTable] };
        if self.nft.tables().await?.contains(&table) {
            self.nft.apply(&remove, None).await?;
        }
        self.nft.apply(&NftBatch { table, ops: nft::diff(None, Some(&tried)) }, None).await?;
        self.nft.apply(&remove, None).await
    }

    /// Bring the chains and sets of our table to what is wanted, leaving the sets' elements, and with
    /// `keep` also what another mode of ours has there. One batch: no packet sees a chain half written.
    pub(super) async fn ensure_chains(
        &self,
        ipv6: bool,
        found: Option<&NftTable>,
        wanted: &NftTable,
        keep: bool,
    ) -> Result<bool, KernelError> {
        let ops = chain_ops(ipv6, found, wanted, keep);
        if ops.is_empty() {
            return Ok(false);
        }
        self.nft.apply(&NftBatch { table: table_key(ipv6), ops }, None).await?;
        Ok(true)
    }

    pub(super) async fn host_addresses(&self) -> Result<Vec<HostAddress>, KernelError> {
        let ours = self.routes.link(DEVICE).await?.map(|link| link.index);
        let addresses = self.routes.addresses().await?;
        Ok(addresses
            .iter()
            .map(|address| HostAddress {
                addr: address.addr,
                loopback: address.link == LOOPBACK,
                ours: Some(address.link) == ours,
                link_local: address.link_local,
            })
            .collect())
    }

    /// Carry out operations of one sort; the result is as long as `ops`.
    pub(super) async fn execute(&self, device: Option<&Link>, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        match (ops.first().map(Sort::of), device, &self.ipvs) {
            (None, ..) => Vec::new(),
            (Some(Sort::Table { ipv6 }), ..) => self.change_table(ipv6, ops).await,
            (Some(Sort::Addresses), Some(link), _) => {
                let changes: Vec<AddressOp> = ops.iter().filter_map(address_op).collect();
                let outcomes = self.routes.change_addresses(link, &changes).await;
                outcomes.into_iter().map(|outcome| outcome.map_err(Into::into)).collect()
            }
            (Some(Sort::Servers | Sort::Reals), _, Ok(ipvs)) => {
                let changes: Vec<_> = ops.iter().filter_map(Op::ipvs).collect();
                let outcomes = ipvs.apply(&changes).await;
                outcomes.into_iter().map(|outcome| outcome.map_err(Into::into)).collect()
            }
            // Such operations are planned in IPVS mode only, which has both.
            (Some(_), ..) => vec![Err(KernelError::Waits("IPVS".to_owned())); ops.len()],
        }
    }

    /// Whether our table is there; where that cannot be read, it is taken to be.
    async fn has_table(&self, ipv6: bool) -> bool {
        self.nft.tables().await.map_or(true, |tables| tables.contains(&table_key(ipv6)))
    }

    /// A batch is taken whole or not at all; a refused one is halved until the culprit stands alone, so
    /// that one bad object keeps no other out.
    async fn change_table(&self, ipv6: bool, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        let mut outcomes: Vec<Result<(), KernelError>> = vec![Ok(()); ops.len()];
        let mut parts = vec![(0, ops.len())];
        while let Some((start, end)) = parts.pop() {
            let batch = NftBatch { table: table_key(ipv6), ops: table_ops(&ops[start..end]) };
            match self.nft.apply(&batch, None).await {
                Ok(()) => {}
                // Without its table every operation would be refused, one after the other.
                Err(error) if error.is_drift() && !self.has_table(ipv6).await => {
                    parts.push((start, end));
                    for (start, end) in parts.drain(..) {
                        outcomes[start..end].fill_with(|| Err(error.clone().into()));
                    }
                }
                Err(error) if end - start == 1 => outcomes[start] = Err(error.into()),
                Err(_) => {
                    let middle = start + (end - start) / 2;
                    parts.push((middle, end));
                    parts.push((start, middle));
                }
            }
        }
        outcomes
    }
}

/// What brings the chains and sets of our table from what was found to what is wanted.
pub(super) fn chain_ops(ipv6: bool, found: Option<&NftTable>, wanted: &NftTable, keep: bool) -> Vec<NftOp> {
    let mut wanted = wanted.clone();
    // Chains that spread come and go with Services.
    for (name, chain) in found.into_iter().flat_map(|table| &table.chains) {
        if Spread::from_chain(name, ipv6).is_some() || (keep && !wanted.chains.contains_key(name)) {
            wanted.chains.insert(name.clone(), chain.clone());
        }
    }
    for (name, set) in found.into_iter().flat_map(|table| &table.sets).filter(|_| keep) {
        wanted.sets.entry(name.clone()).or_insert_with(|| set.clone());
    }
    nft::diff(found, Some(&wanted))
}

fn is_excluded(key: &VirtualServerKey, exclude: &[Cidr]) -> bool {
    match key {
        VirtualServerKey::Address { addr, .. } => exclude.iter().any(|cidr| cidr.contains(*addr)),
        VirtualServerKey::FwMark { .. } => true,
    }
}

fn address_op(op: &Op) -> Option<AddressOp> {
    match (&op.key, &op.change) {
        (ObjectKey::Address(addr), Change::Remove) => Some(AddressOp::Remove(*addr)),
        (ObjectKey::Address(addr), _) => Some(AddressOp::Ensure(*addr)),
        _ => None,
    }
}

/// Chains before what leads to them; deletions of elements before additions, since a changed element is
/// taken out and put in again, and ranges must not overlap.
fn table_ops(ops: &[Op]) -> Vec<NftOp> {
    let mut chains = Vec::new();
    let mut chains_gone = Vec::new();
    let mut gone: BTreeMap<SetId, Vec<ElementKey>> = BTreeMap::new();
    let mut new: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
    for op in ops {
        match (&op.key, &op.change) {
            (ObjectKey::Spread(spread), Change::Remove) => {
                chains_gone.push(NftOp::DelChain { chain: spread.chain() });
            }
            (ObjectKey::Spread(spread), Change::Add(value) | Change::Set(value)) => {
                let ObjectValue::Spread(rules) = value else { continue };
                let chain = spread.chain();
                chains.push(NftOp::AddChain { chain: chain.clone(), base: None });
                if matches!(op.change, Change::Set(_)) {
                    chains.push(NftOp::FlushChain { chain: chain.clone() });
                }
                let rule = |rule: &nft::Rule| NftOp::AddRule { chain: chain.clone(), rule: rule.clone() };
                chains.extend(rules.iter().map(rule));
            }
            (ObjectKey::Element { set, key, .. }, change) => {
                if !matches!(change, Change::Add(_)) {
                    gone.entry(*set).or_default().push(key.clone());
                }
                if let Change::Add(ObjectValue::Element(value)) | Change::Set(ObjectValue::Element(value)) =
                    change
                {
                    new.entry(*set).or_default().push(Element { key: key.clone(), value: value.clone() });
                }
            }
            _ => {}
        }
    }
    let name = |set: SetId| set.name().to_owned();
    chains.extend(gone.into_iter().map(|(set, keys)| NftOp::DelElements { set: name(set), keys }));
    chains.extend(new.into_iter().map(|(set, elements)| NftOp::AddElements { set: name(set), elements }));
    chains.extend(chains_gone);
    chains
}

/// What goes to the kernel in one conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Table { ipv6: bool },
    Servers,
    Reals,
    Addresses,
    Chains { ipv6: bool },
}

impl Sort {
    fn of(op: &Op) -> Sort {
        match &op.key {
            ObjectKey::Element { ipv6, .. } => Sort::Table { ipv6: *ipv6 },
            ObjectKey::Spread(spread) => Sort::Table { ipv6: spread.ipv6 },
            ObjectKey::Server(_) => Sort::Servers,
            ObjectKey::Real(..) => Sort::Reals,
            ObjectKey::Address(_) => Sort::Addresses,
            ObjectKey::Chain(id) => Sort::Chains { ipv6: id.ipv6 },
            ObjectKey::Hook(hook) => Sort::Chains { ipv6: hook.to.ipv6 },
        }
    }
}

/// Whether the operations are iptables', which both families' chains are.
pub(super) fn are_chains(ops: &[Op]) -> bool {
    matches!(ops.first().map(Sort::of), Some(Sort::Chains { .. }))
}

/// How many of the first operations go together: of one sort, bounded, a claim's own never parted.
pub(super) fn batch_len(ops: &[Op]) -> usize {
    let Some(first) = ops.first() else { return 0 };
    let sort = Sort::of(first);
    if are_chains(ops) {
        return ops.iter().take_while(|op| matches!(Sort::of(op), Sort::Chains { .. })).count();
    }
    let same = ops.iter().take_while(|op| Sort::of(op) == sort).count();
    if same <= MAX_BATCH {
        return same;
    }
    let last = ops[MAX_BATCH - 1].claim;
    let rest = ops[MAX_BATCH..same].iter().take_while(|op| op.claim == last).count();
    MAX_BATCH + rest
}

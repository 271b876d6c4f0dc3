//! The real kubelet and kube-proxy on a cluster's node, with the files kubeadm would have written for them: what the
//! daemon takes a node over from, and what it is measured beside. They run in the daemon's place, never beside it.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{KUBECONFIG, assets};
use crate::native::NativeNode;
use crate::node::{CONFIG, Service, sh};

/// Where the programs are in the node.
const PROGRAMS: &str = "/usr/local/bin";
/// The files, where kubeadm has them.
const KUBELET_KUBECONFIG: &str = "/etc/kubernetes/kubelet.conf";
const KUBELET_CONFIG: &str = "/var/lib/kubelet/config.yaml";
const PROXY_FOLDER: &str = "/var/lib/kube-proxy";

/// What the next scenario does not find: files and caches of the programs. The daemon takes their rules out.
pub(super) const FORGET: &str = "rm -rf /etc/kubernetes/kubelet.conf /var/lib/kube-proxy /var/lib/kubelet/config.yaml \
     /var/lib/kubelet/cpu_manager_state /var/lib/kubelet/memory_manager_state";

/// Kernel settings a kubelet insists on, and the kernel's log, which it reads for kills. They belong to the whole
/// machine, so that the node gets files in their places: with the wanted values, and with nothing.
const SETTINGS: &str = "
test -e /dev/kmsg || : > /dev/kmsg
mkdir -p /run/settings
set_to() {
    test \"$(cat /proc/sys/$1)\" = \"$2\" && return
    place=/run/settings/$(echo \"$1\" | tr / -)
    echo \"$2\" > \"$place\"
    mount --bind \"$place\" \"/proc/sys/$1\"
}
set_to vm/overcommit_memory 1
set_to vm/panic_on_oom 0
set_to kernel/panic 10
set_to kernel/panic_on_oops 1
set_to kernel/keys/root_maxkeys 1000000
set_to kernel/keys/root_maxbytes 25000000";

/// The programs, from the folder with them to the node.
pub(super) fn binds(programs: &Path) -> impl Iterator<Item = (PathBuf, PathBuf)> {
    assets::PEERS.into_iter().map(|name| (programs.join(name), Path::new(PROGRAMS).join(name)))
}

/// Starts the kubelet or kube-proxy; done when its health answers.
pub(super) fn start(node: &mut NativeNode, service: Service) -> Result<()> {
    if let Some(reason) = assets::peers_obstacle() {
        anyhow::bail!(reason);
    }
    if service == Service::KubeProxy {
        sh(node, &proxy_files())?;
        let line =
            format!("{PROGRAMS}/kube-proxy --config={PROXY_FOLDER}/config.conf --hostname-override=node");
        return node.start_program(service, &line, "curl -sf http://127.0.0.1:10256/healthz");
    }
    sh(
        node,
        &format!(
            "{SETTINGS}
             mkdir -p /etc/kubernetes /var/lib/kubelet
             cp {KUBECONFIG} {KUBELET_KUBECONFIG}
             cp {CONFIG} {KUBELET_CONFIG}"
        ),
    )?;
    let line = format!("{PROGRAMS}/kubelet --kubeconfig={KUBELET_KUBECONFIG} --config={KUBELET_CONFIG}");
    node.start_program(service, &line, "curl -sf http://127.0.0.1:10248/healthz")
}

/// kube-proxy's configuration, unless the scenario has written one.
fn proxy_files() -> String {
    format!(
        "mkdir -p {PROXY_FOLDER}
         cp {KUBECONFIG} {PROXY_FOLDER}/kubeconfig.conf
         test -e {PROXY_FOLDER}/config.conf || cat > {PROXY_FOLDER}/config.conf <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: {cidr}
clientConnection: {{kubeconfig: {PROXY_FOLDER}/kubeconfig.conf}}
conntrack: {{maxPerCore: 0}}
END",
        cidr = super::POD_IPS
    )
}

//! The node's own certificates: what is asked for, whether one is good, when the next is wanted, and what
//! a signing request's state means. Keys are made, files and the API server are touched, elsewhere.

pub mod need;
pub mod request;
pub mod x509;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;

pub use need::{Need, Standing, need, renew_at, standing};
pub use request::{Verdict, check_issued, request_name, request_object, verdict};
pub use x509::read_certificate;

/// Where a node's certificates are unless it is told otherwise; as for the kubelet this does not follow the root
/// folder.
pub const DEFAULT_FOLDER: &str = "/var/lib/kubelet/pki";

/// Group every node's certificate names (Kubernetes' Node authorizer).
pub const NODES: &str = "system:nodes";

/// What a certificate of the node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Towards the API server.
    Client,
    /// Of the node's own HTTPS server.
    Serving,
}

impl Purpose {
    /// Who signs it (KEP-1513's built-in signers).
    pub fn signer(self) -> &'static str {
        match self {
            Self::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Self::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    /// Usages asked for. `key encipherment` is for RSA keys only; ours are of an elliptic curve.
    pub fn usages(self) -> [&'static str; 2] {
        match self {
            Self::Client => ["digital signature", "client auth"],
            Self::Serving => ["digital signature", "server auth"],
        }
    }

    /// How the kubelet's files of it begin.
    pub fn stem(self) -> &'static str {
        match self {
            Self::Client => "kubelet-client",
            Self::Serving => "kubelet-server",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client certificate",
            Self::Serving => "serving certificate",
        })
    }
}

/// The certificate a node wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    pub purpose: Purpose,
    /// Name of the Node object, lower case.
    pub node: String,
    /// Names and addresses the server is called by; empty for a client.
    pub dns_names: BTreeSet<String>,
    pub ips: BTreeSet<IpAddr>,
}

impl Wish {
    pub fn client(node: &str) -> Self {
        Self {
            purpose: Purpose::Client,
            node: node.to_owned(),
            dns_names: BTreeSet::new(),
            ips: BTreeSet::new(),
        }
    }

    pub fn serving(
        node: &str,
        dns_names: impl IntoIterator<Item = String>,
        ips: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        Self {
            purpose: Purpose::Serving,
            node: node.to_owned(),
            dns_names: dns_names.into_iter().filter(|name| !name.is_empty()).collect(),
            ips: ips.into_iter().collect(),
        }
    }

    /// `system:node:NAME`.
    pub fn common_name(&self) -> String {
        format!("system:node:{}", self.node)
    }
}

/// What matters of a certificate that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub common_name: String,
    pub organisations: Vec<String>,
    pub dns_names: BTreeSet<String>,
    pub ips: BTreeSet<IpAddr>,
    /// SHA-256 of the public key as the certificate holds it (SubjectPublicKeyInfo, DER).
    pub key_hash: [u8; 32],
}

#[cfg(test)]
pub(crate) fn example(not_before: &str, not_after: &str) -> CertificateFacts {
    CertificateFacts {
        not_before: not_before.parse().unwrap(),
        not_after: not_after.parse().unwrap(),
        common_name: "system:node:worker-1".into(),
        organisations: vec![NODES.into()],
        dns_names: BTreeSet::new(),
        ips: BTreeSet::new(),
        key_hash: [7; 32],
    }
}

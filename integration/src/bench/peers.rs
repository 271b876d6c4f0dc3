//! Figures of the kubelet 1.36.3, measured on the same kind of native node (2 cores, kernel 6.18, containerd 1.7.24,
//! crun). Only what was measured; where nothing is known there is nothing.

use serde::Serialize;

use super::figure::Figure;

/// A peer's figure beside ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Peer {
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Where the peer's values are known as a span only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub span: Option<(f64, f64)>,
}

const KUBELET: Peer = Peer { name: "kubelet 1.36.3, native node", p50: None, max: None, span: None };

impl Peer {
    /// What the kubelet was measured at in the same run, one after the other with ours.
    pub fn beside(figure: &Figure) -> Self {
        let (p50, max) = figure.values();
        Self { name: "kubelet 1.36.3, same run", p50: Some(p50), max: Some(max), span: None }
    }
}

/// Seconds from created to Ready, for so many pods at once.
pub fn ready(pods: usize) -> Option<Peer> {
    let (p50, max) = match pods {
        1 => (0.65, None),
        10 => (1.7, None),
        50 => (6.4, None),
        110 => (17.2, Some(18.0)),
        _ => return None,
    };
    Some(Peer { p50: Some(p50), max, ..KUBELET })
}

/// CPU seconds of the kubelet per pod started.
pub const START_CPU: Peer = Peer { span: Some((0.03, 0.05)), ..KUBELET };
/// CPU seconds of the kubelet per pod stopped.
pub const STOP_CPU: Peer = Peer { span: Some((0.02, 0.035)), ..KUBELET };

/// MiB resident.
pub fn resident(pods: usize) -> Option<Peer> {
    let resident = match pods {
        1 => 81.0,
        10 => 86.0,
        50 => 96.0,
        110 => 110.0,
        _ => return None,
    };
    Some(Peer { p50: Some(resident), ..KUBELET })
}

/// Percent of a core, idle.
pub fn idle(pods: usize) -> Option<Peer> {
    let percent = match pods {
        10 => 2.5,
        110 => 3.8,
        _ => return None,
    };
    Some(Peer { p50: Some(percent), ..KUBELET })
}

//! The life of one pod uid as one enum with data, stepped by a pure function; a uid never goes back
//! (behaviours 1). Every question "is it terminating?" is derived from here and nowhere else.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::PodUid;
use crate::pod::desired::EndCause;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifecycle {
    /// Another life of the same namespace/name has not ended yet; this one waits (behaviours 2).
    Queued { behind: PodUid },
    /// Being set up or kept running.
    Syncing,
    /// Containers are being stopped; `deadline` is when all of them get SIGKILL.
    Terminating { cause: EndCause, since: Timestamp, deadline: Timestamp },
    /// The runtime confirmed that nothing runs; volumes, cgroup and folders are being released.
    Terminated { cause: EndCause, at: Timestamp },
    /// Nothing is left but the record. The worker ends; a finished pod keeps its last status.
    Released { cause: EndCause, at: Timestamp },
}

//! The capabilities the agent needs and those it has, so that a missing one is said at the start and in
//! `doctor`, not by a failure much later.

use caps::{CapSet, Capability};

/// A capability and what it is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    capability: Capability,
    /// Its name, such as `CAP_NET_ADMIN`.
    pub name: &'static str,
    /// What fails without it.
    pub purpose: &'static str,
    /// Which half of the agent needs it.
    pub role: Role,
}

/// A half of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Pods.
    Node,
    /// Services.
    Proxy,
}

const fn need(capability: Capability, name: &'static str, purpose: &'static str, role: Role) -> Need {
    Need { capability, name, purpose, role }
}

/// Everything the agent needs.
pub const NEEDED: [Need; 9] = [
    need(Capability::CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "mounts, network namespaces of pods", Role::Node),
    need(Capability::CAP_CHOWN, "CAP_CHOWN", "ownership of volumes (fsGroup)", Role::Node),
    need(Capability::CAP_FOWNER, "CAP_FOWNER", "permissions of volumes", Role::Node),
    need(Capability::CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE", "files of pods of other users", Role::Node),
    need(Capability::CAP_KILL, "CAP_KILL", "ending processes left of pods", Role::Node),
    need(Capability::CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "namespaces and roots of containers", Role::Node),
    need(Capability::CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE", "OOM score of the agent", Role::Node),
    need(
        Capability::CAP_NET_ADMIN,
        "CAP_NET_ADMIN",
        "Service rules, addresses, connection tracking",
        Role::Proxy,
    ),
    need(Capability::CAP_NET_RAW, "CAP_NET_RAW", "packet marks of sockets", Role::Proxy),
];

/// The capabilities could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read the capabilities of this process: {0}")]
pub struct CapabilityError(String);

/// The needed capabilities of some roles that are not effective for this thread.
pub fn missing(roles: &[Role]) -> Result<Vec<Need>, CapabilityError> {
    let effective = caps::read(None, CapSet::Effective).map_err(|err| CapabilityError(err.to_string()))?;
    Ok(missing_of(roles, |capability| effective.contains(&capability)))
}

fn missing_of(roles: &[Role], has: impl Fn(Capability) -> bool) -> Vec<Need> {
    NEEDED.into_iter().filter(|need| roles.contains(&need.role) && !has(need.capability)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_role_needs_is_missed() {
        let without = |absent: Capability| move |capability| capability != absent;
        let names = |needs: Vec<Need>| needs.iter().map(|need| need.name).collect::<Vec<_>>();
        let net_admin = without(Capability::CAP_NET_ADMIN);
        assert_eq!(names(missing_of(&[Role::Node, Role::Proxy], net_admin)), ["CAP_NET_ADMIN"]);
        assert_eq!(names(missing_of(&[Role::Node], net_admin)), [] as [&str; 0]);
        assert_eq!(missing_of(&[Role::Node, Role::Proxy], |_| false).len(), NEEDED.len());
    }

    #[test]
    fn names_are_the_kernels() {
        for need in NEEDED {
            assert_eq!(need.name, need.capability.to_string());
        }
    }

    #[test]
    fn a_thread_that_dropped_one_is_told() {
        // Capabilities are per thread, so that dropping one here touches no other test.
        std::thread::spawn(|| {
            let before = missing(&[Role::Proxy]).unwrap();
            caps::drop(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap();
            let after = missing(&[Role::Proxy]).unwrap();
            assert!(after.iter().any(|need| need.name == "CAP_NET_ADMIN"), "{before:?} {after:?}");
        })
        .join()
        .unwrap();
    }
}

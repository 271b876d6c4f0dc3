//! Validation of a defaulted Pod manifest: what the API server would refuse
//! (pkg/apis/core/validation) for the fields a node uses, each problem with its field and its mend.
//! No lookup of other objects here: a missing ConfigMap is a matter of the plan, not of the manifest.

mod container;
mod names;
mod probe;
mod volume;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::api::core::v1::{Pod, PodSpec, ResourceRequirements};

use crate::pod::containers::containers;
use crate::resources::quantity::{Amount, amount};
pub use names::is_qualified;

/// One thing wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldProblem {
    /// `spec.containers[0].image`.
    pub field: String,
    /// What is wrong, naming the value.
    pub problem: String,
    /// What to write instead.
    pub mend: String,
}

impl fmt::Display for FieldProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.field, self.problem, self.mend)
    }
}

/// All problems of a pod; empty where it can run. Expects a pod that went through
/// [`super::default::default`].
pub fn validate(pod: &Pod) -> Vec<FieldProblem> {
    let mut problems = Problems::default();
    metadata(&mut problems, pod);
    match &pod.spec {
        Some(spec) => pod_spec(&mut problems, pod, spec),
        None => problems.add("spec", "is missing", "give the pod a spec with at least one container"),
    }
    problems.found
}

/// Collects problems; paths are given whole, so that each rule reads by itself.
#[derive(Default)]
pub(super) struct Problems {
    found: Vec<FieldProblem>,
}

impl Problems {
    pub(super) fn add(&mut self, field: &str, problem: impl Into<String>, mend: impl Into<String>) {
        self.found.push(FieldProblem { field: field.to_owned(), problem: problem.into(), mend: mend.into() });
    }

    /// `value` is one of `allowed`.
    pub(super) fn one_of(&mut self, field: &str, value: Option<&str>, allowed: &[&str]) {
        if let Some(value) = value
            && !allowed.contains(&value)
        {
            let mend = format!("use one of {}", allowed.join(", "));
            self.add(field, format!("{value:?} is not known"), mend);
        }
    }

    /// `value` is at least `least`.
    pub(super) fn at_least(&mut self, field: &str, value: Option<i64>, least: i64) {
        if let Some(value) = value
            && value < least
        {
            self.add(field, format!("{value} is too small"), format!("use {least} or more"));
        }
    }
}

fn metadata(problems: &mut Problems, pod: &Pod) {
    match pod.metadata.name.as_deref() {
        None | Some("") => problems.add("metadata.name", "is missing", "give the pod a name"),
        Some(name) => names::subdomain(problems, "metadata.name", name),
    }
    if let Some(namespace) = pod.metadata.namespace.as_deref() {
        names::label(problems, "metadata.namespace", namespace);
    }
    for (key, value) in pod.metadata.labels.iter().flatten() {
        names::qualified(problems, "metadata.labels", key);
        names::label_value(problems, &format!("metadata.labels[{key}]"), value);
    }
    for key in pod.metadata.annotations.iter().flatten().map(|(key, _)| key) {
        // Annotation keys are compared in lower case by the API server.
        names::qualified(problems, "metadata.annotations", &key.to_lowercase());
    }
}

fn pod_spec(problems: &mut Problems, pod: &Pod, spec: &PodSpec) {
    if spec.containers.is_empty() {
        problems.add("spec.containers", "is empty", "give the pod at least one container");
    }
    if spec.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()) {
        problems.add(
            "spec.ephemeralContainers",
            "cannot be part of a manifest",
            "remove them; they are added to a running pod through the API",
        );
    }
    problems.one_of("spec.restartPolicy", spec.restart_policy.as_deref(), &["Always", "OnFailure", "Never"]);
    problems.at_least("spec.terminationGracePeriodSeconds", spec.termination_grace_period_seconds, 0);
    problems.at_least("spec.activeDeadlineSeconds", spec.active_deadline_seconds, 1);
    dns(problems, spec);
    host_names(problems, spec);
    pod_security(problems, spec);
    unsupported(problems, spec);
    let volumes = volume::volumes(problems, spec);
    let mut seen = BTreeSet::new();
    for container in containers(pod) {
        let path = format!("spec.{}[{}]", container.list(), container.index);
        if !seen.insert(container.name.clone()) {
            problems.add(
                &format!("{path}.name"),
                format!("{} is the name of two containers", container.name),
                "give each container its own name",
            );
        }
        container::container(problems, &path, spec, &container, &volumes);
    }
    container::host_ports(problems, pod);
    if let Some(resources) = &spec.resources {
        resource_requirements(problems, "spec.resources", resources);
    }
    for (name, overhead) in spec.overhead.iter().flatten() {
        quantity(problems, &format!("spec.overhead[{name}]"), &overhead.0);
    }
}

fn dns(problems: &mut Problems, spec: &PodSpec) {
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    problems.one_of("spec.dnsPolicy", spec.dns_policy.as_deref(), &policies);
    let config = spec.dns_config.clone().unwrap_or_default();
    let servers = config.nameservers.unwrap_or_default();
    if spec.dns_policy.as_deref() == Some("None") && servers.is_empty() {
        problems.add(
            "spec.dnsConfig.nameservers",
            "is empty while dnsPolicy is None",
            "name at least one name server, or use another dnsPolicy",
        );
    }
    if servers.len() > 3 {
        problems.add(
            "spec.dnsConfig.nameservers",
            format!("has {} entries", servers.len()),
            "keep at most 3",
        );
    }
    for (index, server) in servers.iter().enumerate() {
        names::ip(problems, &format!("spec.dnsConfig.nameservers[{index}]"), server);
    }
    if config.searches.as_ref().is_some_and(|searches| searches.len() > 32) {
        problems.add("spec.dnsConfig.searches", "has more than 32 entries", "keep at most 32");
    }
}

fn host_names(problems: &mut Problems, spec: &PodSpec) {
    if let Some(hostname) = spec.hostname.as_deref().filter(|name| !name.is_empty()) {
        names::label(problems, "spec.hostname", hostname);
    }
    if let Some(subdomain) = spec.subdomain.as_deref().filter(|name| !name.is_empty()) {
        names::label(problems, "spec.subdomain", subdomain);
    }
    for (index, alias) in spec.host_aliases.iter().flatten().enumerate() {
        names::ip(problems, &format!("spec.hostAliases[{index}].ip"), &alias.ip);
        for hostname in alias.hostnames.iter().flatten() {
            names::subdomain(problems, &format!("spec.hostAliases[{index}].hostnames"), hostname);
        }
    }
}

fn pod_security(problems: &mut Problems, spec: &PodSpec) {
    if spec.host_pid == Some(true) && spec.share_process_namespace == Some(true) {
        problems.add(
            "spec.shareProcessNamespace",
            "cannot be true together with hostPID",
            "keep one of the two",
        );
    }
    let Some(security) = &spec.security_context else { return };
    let path = "spec.securityContext";
    problems.at_least(&format!("{path}.runAsUser"), security.run_as_user, 0);
    problems.at_least(&format!("{path}.runAsGroup"), security.run_as_group, 0);
    problems.at_least(&format!("{path}.fsGroup"), security.fs_group, 0);
    problems.one_of(
        &format!("{path}.fsGroupChangePolicy"),
        security.fs_group_change_policy.as_deref(),
        &["Always", "OnRootMismatch"],
    );
    problems.one_of(
        &format!("{path}.supplementalGroupsPolicy"),
        security.supplemental_groups_policy.as_deref(),
        &["Merge", "Strict"],
    );
    if let Some(profile) = &security.seccomp_profile {
        let localhost = profile.localhost_profile.as_deref();
        container::profile(problems, &format!("{path}.seccompProfile"), &profile.type_, localhost);
    }
    if let Some(profile) = &security.app_armor_profile {
        let localhost = profile.localhost_profile.as_deref();
        container::profile(problems, &format!("{path}.appArmorProfile"), &profile.type_, localhost);
    }
    for (index, sysctl) in security.sysctls.iter().flatten().enumerate() {
        names::sysctl(problems, &format!("{path}.sysctls[{index}].name"), &sysctl.name);
    }
}

/// Fields that would change what runs and that this version cannot honour are refused, not ignored.
fn unsupported(problems: &mut Problems, spec: &PodSpec) {
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        problems.add(
            "spec.resourceClaims",
            "is not supported: it needs a control plane that allocates devices",
            "remove it, or run the pod through a control plane",
        );
    }
    if spec.host_users == Some(false) {
        problems.add("spec.hostUsers", "false (a user namespace) is not supported yet", "remove the field");
    }
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        problems.add("spec.os.name", "this node runs Linux only", "use linux, or remove the field");
    }
}

/// A quantity that parses and is not negative.
pub(super) fn quantity(problems: &mut Problems, field: &str, text: &str) -> Option<Amount> {
    match Amount::parse(text) {
        Err(error) => {
            problems.add(field, error.to_string(), "write a number with a suffix, as in 100m, 1.5 or 128Mi");
            None
        }
        Ok(amount) if amount.is_negative() => {
            problems.add(field, format!("{text} is negative"), "use zero or more");
            None
        }
        Ok(amount) => Some(amount),
    }
}

pub(super) fn resource_requirements(problems: &mut Problems, path: &str, resources: &ResourceRequirements) {
    for (list, quantities) in [("limits", &resources.limits), ("requests", &resources.requests)] {
        for (name, value) in quantities.iter().flatten() {
            // A request that defaulting copied from the limit is not told twice.
            if list == "requests"
                && resources.limits.as_ref().and_then(|limits| limits.get(name)) == Some(value)
            {
                continue;
            }
            let field = format!("{path}.{list}[{name}]");
            resource_name(problems, &field, name);
            if let Some(amount) = quantity(problems, &field, &value.0) {
                resource_precision(problems, &field, name, amount);
            }
        }
    }
    for (name, request) in resources.requests.iter().flatten() {
        let limit = resources.limits.as_ref().and_then(|limits| limits.get(name));
        if let (Some(Ok(limit)), Ok(request)) = (limit.map(amount), amount(request))
            && request > limit
        {
            problems.add(
                &format!("{path}.requests[{name}]"),
                format!("the request {request} is above the limit {limit}"),
                "lower the request or raise the limit",
            );
        }
    }
    if resources.claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        problems.add(&format!("{path}.claims"), "is not supported", "remove it");
    }
}

fn resource_name(problems: &mut Problems, field: &str, name: &str) {
    let standard = ["cpu", "memory", "ephemeral-storage"];
    if standard.contains(&name) || name.starts_with("hugepages-") {
        return;
    }
    if name.contains('/') {
        problems.add(
            field,
            format!("no device plugin offers {name} on this node"),
            "remove it; extended resources are not supported yet",
        );
    } else {
        problems.add(
            field,
            format!("{name} is no resource"),
            "use cpu, memory, ephemeral-storage or hugepages-<size>",
        );
    }
}

fn resource_precision(problems: &mut Problems, field: &str, name: &str, amount: Amount) {
    if name == "cpu" && !amount.is_whole_millis() {
        problems.add(field, format!("{amount} is finer than a thousandth of a CPU"), "use 1m or more");
    }
    if name == "memory" && !amount.is_whole() {
        problems.add(
            field,
            format!("{amount} is not a whole number of bytes"),
            "did you mean Mi instead of m?",
        );
    }
}

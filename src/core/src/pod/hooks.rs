//! Lifecycle hooks and the shared part of probes: API handlers to actions with numbers for ports and
//! an address for the host (behaviours 18).

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerPort, HTTPGetAction, LifecycleHandler, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::pod::step::Hook;

/// What a handler is resolved against: the container's ports and the pod's address.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    pub ports: &'a [ContainerPort],
    pub pod_ip: Option<IpAddr>,
}

impl Target<'_> {
    /// A number, a number as text, or the name of a port.
    pub fn port(&self, port: &IntOrString) -> Option<u16> {
        let number = match port {
            IntOrString::Int(number) => *number,
            IntOrString::String(name) => {
                let named = self.ports.iter().find(|port| port.name.as_deref() == Some(name));
                named.map(|port| port.container_port).or_else(|| name.parse().ok())?
            }
        };
        u16::try_from(number).ok().filter(|port| *port != 0)
    }

    /// What was given, else the pod's address.
    pub fn host(&self, given: Option<&str>) -> String {
        match given.filter(|host| !host.is_empty()) {
            Some(host) => host.to_owned(),
            None => self.pod_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        }
    }

    pub fn http(&self, http: &HTTPGetAction) -> Option<Hook> {
        let headers = http.http_headers.iter().flatten();
        let path = http.path.as_deref().unwrap_or("/");
        Some(Hook::HttpGet {
            scheme: http.scheme.as_deref().unwrap_or("HTTP").to_owned(),
            host: self.host(http.host.as_deref()),
            port: self.port(&http.port)?,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
            headers: headers.map(|header| (header.name.clone(), header.value.clone())).collect(),
        })
    }

    pub fn tcp(&self, tcp: &TCPSocketAction) -> Option<Hook> {
        Some(Hook::TcpSocket { host: self.host(tcp.host.as_deref()), port: self.port(&tcp.port)? })
    }

    /// `None` where the handler names nothing that can be done.
    pub fn hook(&self, handler: &LifecycleHandler) -> Option<Hook> {
        if let Some(exec) = &handler.exec {
            return Some(Hook::Exec { command: exec.command.clone().unwrap_or_default() });
        }
        if let Some(http) = &handler.http_get {
            return self.http(http);
        }
        if let Some(tcp) = &handler.tcp_socket {
            return self.tcp(tcp);
        }
        let seconds = u64::try_from(handler.sleep.as_ref()?.seconds).unwrap_or(0);
        Some(Hook::Sleep { duration: Duration::from_secs(seconds) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resolves_ports_and_hosts() {
        let ports = vec![ContainerPort {
            name: Some("http".into()),
            container_port: 8080,
            ..ContainerPort::default()
        }];
        let target = Target { ports: &ports, pod_ip: Some("10.0.0.5".parse().unwrap()) };
        let http = |host: &str, port, path: &str| {
            Some(Hook::HttpGet {
                scheme: "HTTP".into(),
                host: host.into(),
                port,
                path: path.into(),
                headers: vec![],
            })
        };
        let cases = [
            (json!({"httpGet": {"port": "http", "path": "/x"}}), http("10.0.0.5", 8080, "/x")),
            (json!({"httpGet": {"port": 90, "host": "other", "path": "x"}}), http("other", 90, "/x")),
            (json!({"httpGet": {"port": "none"}}), None),
            (
                json!({"tcpSocket": {"port": "81"}}),
                Some(Hook::TcpSocket { host: "10.0.0.5".into(), port: 81 }),
            ),
            (json!({"exec": {"command": ["a"]}}), Some(Hook::Exec { command: vec!["a".into()] })),
            (json!({"sleep": {"seconds": 3}}), Some(Hook::Sleep { duration: Duration::from_secs(3) })),
            (json!({}), None),
        ];
        for (handler, expected) in cases {
            let parsed: LifecycleHandler = serde_json::from_value(handler.clone()).unwrap();
            assert_eq!(target.hook(&parsed), expected, "{handler}");
        }
    }
}

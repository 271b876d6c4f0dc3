//! The variables containers get of the Services of their namespace (`enableServiceLinks`): the
//! kubelet's `{NAME}_SERVICE_HOST` and the older Docker links form. Pure.

use std::collections::BTreeMap;

use super::types::{ProtocolName, Service, ServicePort, ServiceType};

/// Variables by namespace, in a stable order. Services without a cluster address have none.
pub fn variables<'a>(
    services: impl IntoIterator<Item = &'a Service>,
) -> BTreeMap<String, Vec<(String, String)>> {
    let mut all: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for service in services {
        let ip = service.spec.cluster_ip.as_str();
        let unreachable = ip.is_empty() || ip == "None" || service.spec.kind == ServiceType::ExternalName;
        let Some(first) = service.spec.ports.first().filter(|_| !unreachable) else { continue };
        let key = service.key();
        let name = variable_name(&key.name);
        let own = all.entry(key.namespace.to_string()).or_default();
        own.push((format!("{name}_SERVICE_HOST"), ip.to_owned()));
        own.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
        for port in service.spec.ports.iter().filter(|port| !port.name.is_empty()) {
            own.push((format!("{name}_SERVICE_PORT_{}", variable_name(&port.name)), port.port.to_string()));
        }
        own.push((format!("{name}_PORT"), link(ip, first)));
        for port in &service.spec.ports {
            let protocol = protocol_name(port);
            let prefix = format!("{name}_PORT_{}_{}", port.port, protocol.to_ascii_uppercase());
            own.push((prefix.clone(), link(ip, port)));
            own.push((format!("{prefix}_PROTO"), protocol.to_owned()));
            own.push((format!("{prefix}_PORT"), port.port.to_string()));
            own.push((format!("{prefix}_ADDR"), ip.to_owned()));
        }
    }
    all
}

/// `my-db` -> `MY_DB`.
fn variable_name(name: &str) -> String {
    name.replace('-', "_").to_ascii_uppercase()
}

fn link(ip: &str, port: &ServicePort) -> String {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    format!("{}://{host}:{}", protocol_name(port), port.port)
}

fn protocol_name(port: &ServicePort) -> &'static str {
    match port.protocol {
        ProtocolName::Tcp => "tcp",
        ProtocolName::Udp => "udp",
        ProtocolName::Sctp => "sctp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(value: serde_json::Value) -> Service {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_service_with_an_address_gives_its_variables() {
        let services = [
            service(serde_json::json!({"metadata": {"name": "my-db", "namespace": "shop"}, "spec": {
                "clusterIP": "10.96.0.9",
                "ports": [{"name": "sql", "port": 5432}, {"name": "dns-x", "port": 53, "protocol": "UDP"}]}})),
            service(serde_json::json!({"metadata": {"name": "headless", "namespace": "shop"}, "spec": {
                "clusterIP": "None", "ports": [{"port": 1}]}})),
            service(serde_json::json!({"metadata": {"name": "empty"}, "spec": {"ports": [{"port": 1}]}})),
        ];
        let all = variables(&services);
        assert_eq!(all.keys().collect::<Vec<_>>(), ["shop"]);
        let shown: Vec<String> = all["shop"].iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            shown,
            [
                "MY_DB_SERVICE_HOST=10.96.0.9",
                "MY_DB_SERVICE_PORT=5432",
                "MY_DB_SERVICE_PORT_SQL=5432",
                "MY_DB_SERVICE_PORT_DNS_X=53",
                "MY_DB_PORT=tcp://10.96.0.9:5432",
                "MY_DB_PORT_5432_TCP=tcp://10.96.0.9:5432",
                "MY_DB_PORT_5432_TCP_PROTO=tcp",
                "MY_DB_PORT_5432_TCP_PORT=5432",
                "MY_DB_PORT_5432_TCP_ADDR=10.96.0.9",
                "MY_DB_PORT_53_UDP=udp://10.96.0.9:53",
                "MY_DB_PORT_53_UDP_PROTO=udp",
                "MY_DB_PORT_53_UDP_PORT=53",
                "MY_DB_PORT_53_UDP_ADDR=10.96.0.9",
            ]
        );
    }
}

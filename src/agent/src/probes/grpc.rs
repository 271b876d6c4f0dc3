//! The grpc probe: the standard health service over plain HTTP/2, one connection per try.

use longshore_cri::api::health::HealthCheckRequest;
use longshore_cri::api::health::health_check_response::ServingStatus;
use longshore_cri::api::health::health_client::HealthClient;
use tonic::Code;
use tonic::transport::Endpoint;

use super::attempt::Outcome;
use super::http::USER_AGENT;
use super::tcp::unbracketed;

pub(super) async fn check(host: &str, port: u16, service: &str) -> Outcome {
    let host = unbracketed(host);
    let address =
        if host.contains(':') { format!("http://[{host}]:{port}") } else { format!("http://{host}:{port}") };
    let endpoint = match Endpoint::from_shared(address).and_then(|endpoint| endpoint.user_agent(USER_AGENT)) {
        Ok(endpoint) => endpoint,
        Err(error) => return Outcome::Error(format!("{host} port {port} is no address: {error}")),
    };
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => {
            return Outcome::Failure(format!(
                "connect to {host} port {port}: {}",
                crate::text::error_chain(&error)
            ));
        }
    };
    let request = HealthCheckRequest { service: service.to_owned() };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Outcome::Success("SERVING".to_owned()),
            status => Outcome::Failure(format!("service {service:?} is {}", status.as_str_name())),
        },
        Err(status) if status.code() == Code::Unimplemented => {
            Outcome::Failure("the server does not have the gRPC health service".to_owned())
        }
        Err(status) => Outcome::Failure(format!("health check of service {service:?}: {}", status.message())),
    }
}

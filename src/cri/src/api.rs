//! The generated messages, clients and servers of the wire protocols in `/proto`.
//! Nothing is written by hand here; `convert` is the only place that should know these types' shapes.

/// CRI v1, package `runtime.v1`.
#[allow(clippy::all, clippy::too_many_lines, missing_debug_implementations, rust_2018_idioms)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// gRPC health checking, package `grpc.health.v1`: what a `grpc` probe calls.
#[allow(clippy::all, clippy::too_many_lines, missing_debug_implementations, rust_2018_idioms)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

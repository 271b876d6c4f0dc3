//! Compiles the wire protocols of `/proto` with protox, so that no protoc has to be installed.

use std::error::Error;

/// Relative to this crate; the folder is also the include root.
const PROTO_ROOT: &str = "../../proto";
const FILES: [&str; 2] = ["runtime/v1/api.proto", "health/v1/health.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO_ROOT}");
    let descriptors = protox::compile(FILES, [PROTO_ROOT])?;
    tonic_prost_build::configure().build_client(true).build_server(true).compile_fds(descriptors)?;
    Ok(())
}

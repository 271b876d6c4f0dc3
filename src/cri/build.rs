//! Compiles the wire protocols of `/proto` with protox, so that no protoc has to be installed.

use std::error::Error;

/// Relative to this crate; the folder is also the include root.
const PROTO_ROOT: &str = "../../proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO_ROOT}");
    // The fake runtime leaves out the calls nobody here makes.
    compile("runtime/v1/api.proto", true)?;
    compile("health/v1/health.proto", false)
}

fn compile(file: &str, default_stubs: bool) -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile([file], [PROTO_ROOT])?;
    let configured = tonic_prost_build::configure().build_client(true).build_server(true);
    configured.generate_default_stubs(default_stubs).compile_fds(descriptors)?;
    Ok(())
}

//! Turns the identity API's protobuf into Rust, without `protoc`: the client for the library, the server for its tests.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "../proto/postern/identity/v1/identity.proto";
    println!("cargo::rerun-if-changed={proto}");
    let descriptors = protox::compile([proto], ["../proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .compile_fds(descriptors.clone())?;
    let tests = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("test-server");
    std::fs::create_dir_all(&tests)?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .out_dir(tests)
        .compile_fds(descriptors)?;
    Ok(())
}

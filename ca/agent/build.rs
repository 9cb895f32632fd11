//! Turns protobuf into Rust, without `protoc`: the identity API's client and the servers for workloads for the library,
//! their counterparts for its tests.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let identity = ["../proto/postern/identity/v1/identity.proto"];
    let workload = ["../proto/spiffe/workload.proto", "../proto/envoy/secret.proto"];
    for proto in identity.iter().chain(&workload) {
        println!("cargo::rerun-if-changed={proto}");
    }
    let identity = protox::compile(identity, ["../proto"])?;
    let workload = protox::compile(workload, ["../proto"])?;
    let build = tonic_prost_build::configure;
    build().build_server(false).build_transport(false).compile_fds(identity.clone())?;
    build().build_client(false).build_transport(false).compile_fds(workload.clone())?;

    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let (server, client) = (out.join("test-server"), out.join("test-client"));
    std::fs::create_dir_all(&server)?;
    std::fs::create_dir_all(&client)?;
    build().build_client(false).build_transport(false).out_dir(server).compile_fds(identity)?;
    build().build_server(false).build_transport(false).out_dir(client).compile_fds(workload)?;
    Ok(())
}

//! Turns the identity API's protobuf into Rust, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "proto/postern/identity/v1/identity.proto";
    println!("cargo::rerun-if-changed={proto}");
    let descriptors = protox::compile([proto], ["proto"])?;
    tonic_prost_build::configure().build_client(false).build_server(true).compile_fds(descriptors)?;
    Ok(())
}

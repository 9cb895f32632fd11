//! Turns what is used of etcd's protobuf into Rust, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "proto/etcd/rpc.proto";
    println!("cargo::rerun-if-changed={proto}");
    let descriptors = protox::compile([proto], ["proto"])?;
    let build = tonic_prost_build::configure().build_server(false).build_transport(false);
    build.compile_fds(descriptors)?;
    Ok(())
}

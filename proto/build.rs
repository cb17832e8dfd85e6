//! Generates the Rust side of the protocol files; there is no logic in this crate.
use std::{env, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/control.proto", "proto/csi.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    tonic_prost_build::configure()
        .file_descriptor_set_path(descriptors)
        .compile_protos(&files, &["proto"])?;
    Ok(())
}

//! Generates the Rust side of the protocol files; there is no logic in this crate.
use std::{env, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in ["proto/control.proto", "proto/csi.proto"] {
        println!("cargo::rerun-if-changed={file}");
    }
    tonic_prost_build::configure().compile_protos(&["proto/control.proto"], &["proto"])?;
    // CSI calls that a plugin does not write answer UNIMPLEMENTED, as the specification has it.
    tonic_prost_build::configure()
        .generate_default_stubs(true)
        .file_descriptor_set_path(PathBuf::from(env::var("OUT_DIR")?).join("csi.bin"))
        .compile_protos(&["proto/csi.proto"], &["proto"])?;
    Ok(())
}

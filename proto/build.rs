//! Generates the Rust side of the protocol files; there is no logic in this crate.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/control.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    tonic_prost_build::configure().compile_protos(&files, &["proto"])?;
    Ok(())
}

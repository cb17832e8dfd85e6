//! A loop device over a sparse file, both gone when dropped.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device with 4096-byte blocks over a sparse file.
#[derive(Debug)]
pub struct LoopDevice {
    pub device: PathBuf,
    pub file: PathBuf,
    /// The file outlives the device: the volume's data stays when it is detached.
    pub keep_file: bool,
}

fn run(program: &str, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(arguments).output()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("{program} {arguments:?}: {text}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl LoopDevice {
    /// Makes `file` at least `size` bytes long and a device of it.
    pub fn attach(file: &Path, size: u64) -> io::Result<Self> {
        let handle =
            std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(file)?;
        if handle.metadata()?.len() < size {
            handle.set_len(size)?;
        }
        let name = file.to_str().ok_or(io::ErrorKind::InvalidInput)?;
        let device = run("losetup", &["--find", "--show", "--sector-size", "4096", name])
            .map(PathBuf::from)?;
        Ok(Self { device, file: file.to_owned(), keep_file: true })
    }

    /// Grows file and device.
    pub fn grow(&self, size: u64) -> io::Result<()> {
        std::fs::OpenOptions::new().write(true).open(&self.file)?.set_len(size)?;
        run("losetup", &["--set-capacity", &self.device.to_string_lossy()]).map(|_| ())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // With mounts left the kernel defers the detach to the last close.
        if let Err(error) = run("losetup", &["--detach", &self.device.to_string_lossy()]) {
            eprintln!("{error}");
        }
        if !self.keep_file {
            let _ = std::fs::remove_file(&self.file);
        }
    }
}

//! What a killed daemon left behind: loop devices, FUSE mounts and sockets of this data directory.

use super::device::{detach_loops, unmount};
use crate::data::FUSE_FILE;
use std::path::Path;

/// Removes all of it. Blocking; to be called before anything is served. Nothing here can hang: the
/// FUSE connections are dead with the process that served them.
pub(in crate::control) fn remove_strays(data_dir: &Path) {
    for entry in entries(&data_dir.join("fuse")) {
        let mount = entry.as_path();
        tracing::info!(mount = %mount.display(), "removing what a former process left");
        // The loop devices first: they keep the mount in use. Each step may find nothing to do.
        let steps =
            [hostio::fuse::abort(mount), detach_loops(&mount.join(FUSE_FILE)), unmount(mount)];
        for error in steps.into_iter().filter_map(Result::err) {
            tracing::warn!(mount = %mount.display(), %error, "a remnant could not be removed");
        }
    }
    for socket in entries(&data_dir.join("nbd")) {
        if let Err(error) = std::fs::remove_file(&socket) {
            tracing::warn!(socket = %socket.display(), %error, "a remnant could not be removed");
        }
    }
}

fn entries(directory: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

//! Which way a node's kernel can reach a volume.

use std::fs::OpenOptions;
use std::path::Path;
use thiserror::Error;

/// How the kernel of a node reaches a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A FUSE file with a loop device on it.
    FuseLoop,
}

impl Kind {
    /// Its name in status and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FuseLoop => "fuse-loop",
        }
    }
}

/// What was chosen and, in words, why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// What was chosen.
    pub kind: Kind,
    /// Why, and why not the others; for status and log.
    pub reason: String,
}

/// No way for this node's kernel to reach a volume.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no front-end for this kernel: {missing}")]
pub struct NoFrontend {
    /// What is missing, in words.
    pub missing: String,
}

/// Chooses by what this node has.
///
/// # Errors
/// [`NoFrontend`] naming every device that is missing.
pub fn select() -> Result<Selection, NoFrontend> {
    choose(|device| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(Path::new(device))
            .map(drop)
            .map_err(|error| error.to_string())
    })
}

/// [`select`], with the opening of device nodes in its argument.
fn choose(mut open: impl FnMut(&str) -> Result<(), String>) -> Result<Selection, NoFrontend> {
    let missing: Vec<String> = ["/dev/fuse", "/dev/loop-control"]
        .into_iter()
        .filter_map(|device| open(device).err().map(|error| format!("{device}: {error}")))
        .collect();
    if !missing.is_empty() {
        let missing = format!(
            "{}; attaching through the kernel's nbd or ublk is not implemented",
            missing.join(", ")
        );
        return Err(NoFrontend { missing });
    }
    Ok(Selection {
        kind: Kind::FuseLoop,
        reason:
            "/dev/fuse and /dev/loop-control are usable; attaching through the kernel's nbd or \
                 ublk is not implemented"
                .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_choice_names_what_is_missing() {
        let chosen = choose(|_| Ok(())).unwrap();
        assert_eq!(chosen.kind.name(), "fuse-loop");
        assert!(chosen.reason.contains("nbd"));
        let refused = choose(|device| match device {
            "/dev/fuse" => Ok(()),
            _ => Err("No such file".to_owned()),
        });
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("/dev/loop-control: No such file") && !text.contains("/dev/fuse"));
    }
}

//! Which way a node's kernel can reach a volume.

use std::fs::OpenOptions;
use std::str::FromStr;
use thiserror::Error;

/// How the kernel of a node reaches a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A FUSE file with a loop device on it.
    FuseLoop,
    /// The kernel's NBD driver.
    KernelNbd,
}

impl Kind {
    const ALL: [Self; 2] = [Self::FuseLoop, Self::KernelNbd];

    /// Its name in configuration, status and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FuseLoop => "fuse-loop",
            Self::KernelNbd => "kernel-nbd",
        }
    }
}

/// Not the name of a [`Kind`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no such front-end")]
pub struct UnknownKind;

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or(UnknownKind)
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

/// The first Linux that sends requests of a FUSE filesystem again (FUSE_NOTIFY_RESEND): before it, a
/// loop device over FUSE ends with the daemon.
const RESENDS: (u32, u32) = (6, 9);

/// Chooses by what this node has: FUSE and loop where that outlives its daemon, else NBD, else FUSE and
/// loop all the same. `forced` is taken if it can be had, and no other.
///
/// # Errors
/// [`NoFrontend`] saying what each way lacks.
pub fn select(forced: Option<Kind>) -> Result<Selection, NoFrontend> {
    choose(forced, hostio::process::kernel_version() >= RESENDS, probe)
}

/// What `kind` lacks on this node, in words.
fn probe(kind: Kind) -> Result<(), String> {
    match kind {
        Kind::KernelNbd => hostio::nbd::probe(),
        Kind::FuseLoop => {
            let missing: Vec<String> = ["/dev/fuse", "/dev/loop-control"]
                .into_iter()
                .filter_map(|device| {
                    let opened = OpenOptions::new().read(true).write(true).open(device);
                    opened.err().map(|error| format!("{device}: {error}"))
                })
                .collect();
            if missing.is_empty() { Ok(()) } else { Err(missing.join(", ")) }
        }
    }
}

/// [`select`], with what it asks the kernel in its arguments.
fn choose(
    forced: Option<Kind>,
    resends: bool,
    mut probe: impl FnMut(Kind) -> Result<(), String>,
) -> Result<Selection, NoFrontend> {
    if let Some(kind) = forced {
        return match probe(kind) {
            Ok(()) => Ok(Selection { kind, reason: "the configuration says so".to_owned() }),
            Err(missing) => {
                let missing = format!("{} (configured): {missing}", kind.name());
                Err(NoFrontend { missing })
            }
        };
    }
    let ([first, second], why) = if resends {
        (Kind::ALL, "a FUSE device outlives its daemon on this kernel, and is the quicker one")
    } else {
        let why = "before Linux 6.9 a FUSE device ends with its daemon, and this one does not";
        ([Kind::KernelNbd, Kind::FuseLoop], why)
    };
    let Err(lacking) = probe(first) else {
        return Ok(Selection { kind: first, reason: why.to_owned() });
    };
    let lacking = format!("{}: {lacking}", first.name());
    match probe(second) {
        Ok(()) => Ok(Selection { kind: second, reason: format!("not {lacking}") }),
        Err(also) => Err(NoFrontend { missing: format!("{lacking}; {}: {also}", second.name()) }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn without(missing: Kind) -> impl FnMut(Kind) -> Result<(), String> {
        move |kind| if kind == missing { Err("gone".to_owned()) } else { Ok(()) }
    }

    #[test]
    fn the_choice_says_why_and_a_forced_one_has_no_substitute() {
        for (resends, first) in [(true, Kind::FuseLoop), (false, Kind::KernelNbd)] {
            assert_eq!(choose(None, resends, |_| Ok(())).unwrap().kind, first);
            let other = choose(None, resends, without(first)).unwrap();
            assert_ne!(other.kind, first);
            assert_eq!(other.reason, format!("not {}: gone", first.name()));
        }
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(choose(Some(kind), true, |_| Ok(())).unwrap().kind, kind);
            let refused = choose(Some(kind), false, without(kind)).unwrap_err().to_string();
            assert!(refused.contains(kind.name()) && refused.contains("gone"), "{refused}");
        }
        let none =
            choose(None, true, |kind| Err(format!("no {}", kind.name()))).unwrap_err().missing;
        assert!(none.contains("no kernel-nbd") && none.contains("no fuse-loop"), "{none}");
        assert_eq!("ublk".parse::<Kind>(), Err(UnknownKind));
    }
}

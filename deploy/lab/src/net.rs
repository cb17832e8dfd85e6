//! The lab's network: one namespace per node, one more (the hub) with the bridge between them. The
//! machine's own namespace is not touched.

use crate::exec::{run, run_with_input};
use crate::layout::Layout;
use anyhow::{Context as _, Result};

const CUT_TABLE: &str = "holdfast_cut";

/// Makes the hub namespace with its bridge.
///
/// # Errors
/// If `ip` fails.
pub fn make_hub(layout: &Layout) -> Result<()> {
    let hub = layout.hub();
    run("ip", &["netns", "add", &hub])?;
    let address = format!("{}/24", layout.hub_address());
    for args in [
        vec!["link", "set", "lo", "up"],
        vec!["link", "add", "br0", "type", "bridge"],
        vec!["addr", "add", &address, "dev", "br0"],
        vec!["link", "set", "br0", "up"],
    ] {
        ip_in(&hub, &args)?;
    }
    Ok(())
}

/// Makes a node's namespace and plugs it into the bridge.
///
/// # Errors
/// If `ip` fails.
pub fn make_node(layout: &Layout, node: u64) -> Result<()> {
    let (hub, namespace) = (layout.hub(), layout.namespace(node));
    let port = format!("port{node}");
    run("ip", &["netns", "add", &namespace])?;
    ip_in(
        &hub,
        &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace],
    )?;
    ip_in(&hub, &["link", "set", &port, "master", "br0", "up"])?;
    let address = format!("{}/24", layout.address(node));
    ip_in(&namespace, &["link", "set", "lo", "up"])?;
    ip_in(&namespace, &["addr", "add", &address, "dev", "eth0"])?;
    ip_in(&namespace, &["link", "set", "eth0", "up"])
}

/// Leaves a node's cable to the machine in its namespace: the host no longer answers on it.
///
/// # Errors
/// If `ip` fails.
pub fn hand_over(layout: &Layout, node: u64) -> Result<()> {
    ip_in(&layout.namespace(node), &["addr", "flush", "dev", "eth0"])
}

fn ip_in(namespace: &str, args: &[&str]) -> Result<()> {
    let mut all = vec!["-n", namespace];
    all.extend(args);
    run("ip", &all).map(drop)
}

/// Removes a namespace with all its links; its processes must be gone.
///
/// # Errors
/// If `ip` fails.
pub fn remove(namespace: &str) -> Result<()> {
    run("ip", &["netns", "del", namespace]).map(drop)
}

/// Which packets of a node are dropped; never those on loopback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All of them.
    All,
    /// Those that come in.
    Incoming,
    /// Those that go out.
    Outgoing,
    /// Those of one TCP port, whichever side has it.
    Port(u16),
}

impl Cut {
    /// Rules of the input and the output chain.
    fn rules(self) -> (String, String) {
        let all = "drop".to_owned();
        match self {
            Self::All => (all.clone(), all),
            Self::Incoming => (all, String::new()),
            Self::Outgoing => (String::new(), all),
            Self::Port(port) => {
                let rule = format!("tcp dport {port} drop\ntcp sport {port} drop");
                (rule.clone(), rule)
            }
        }
    }
}

/// Drops packets of a node both ways, or as `cut` says; nothing on the node is told. An earlier cut
/// of it is replaced.
///
/// # Errors
/// If `nft` fails.
pub fn cut(layout: &Layout, node: u64, cut: Cut) -> Result<()> {
    let (input, output) = cut.rules();
    let rules = format!(
        "table inet {CUT_TABLE}
         delete table inet {CUT_TABLE}
         table inet {CUT_TABLE} {{
           chain input {{
             type filter hook input priority -300; policy accept;
             iifname \"lo\" accept
             {input}
           }}
           chain output {{
             type filter hook output priority -300; policy accept;
             oifname \"lo\" accept
             {output}
           }}
         }}
        "
    );
    nft(layout, node, &["-f", "-"], &rules).map(drop).context("cutting the node off")
}

/// Takes back what [`cut`] did; fine if nothing was cut.
///
/// # Errors
/// If `nft` fails.
pub fn heal(layout: &Layout, node: u64) -> Result<()> {
    // Adding first makes the deletion right in both cases.
    let rules = format!("table inet {CUT_TABLE}\ndelete table inet {CUT_TABLE}\n");
    nft(layout, node, &["-f", "-"], &rules).map(drop).context("healing the node")
}

/// Whether [`cut`] is in force.
///
/// # Errors
/// If `nft` fails.
pub fn is_cut(layout: &Layout, node: u64) -> Result<bool> {
    Ok(nft(layout, node, &["list", "tables"], "")?.contains(CUT_TABLE))
}

fn nft(layout: &Layout, node: u64, args: &[&str], input: &str) -> Result<String> {
    let enter =
        format!("--net={}", Layout::namespace_path(&layout.namespace(node)).to_string_lossy());
    let mut all = vec![enter.as_str(), "nft"];
    all.extend(args);
    run_with_input("nsenter", &all, input)
}

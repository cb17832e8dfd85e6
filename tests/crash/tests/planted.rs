//! Bugs of the store whose effect lasts for a few milliseconds: the simulator seldom cuts the power in them, this
//! harness always does.
#![allow(clippy::unwrap_used)]

use crash::run::{Plan, run};
use types::plant::{Bug, plant};

#[test]
fn bugs_of_a_few_milliseconds_are_found() {
    for bug in [Bug::ReuseBeforeUnmapped] {
        plant(Some(bug));
        // A planted bug may make the store panic: that is one way to be found.
        let found = (1..=1000).find_map(|seed| Some((seed, run(seed, Plan::USUAL).losses.pop()?)));
        plant(None);
        let (seed, loss) = found.unwrap_or_else(|| panic!("{bug:?} is planted and loses nothing"));
        println!("{bug:?}: {loss}");
        assert!(run(seed, Plan::USUAL).losses.is_empty(), "seed {seed} fails without it, too");
    }
}

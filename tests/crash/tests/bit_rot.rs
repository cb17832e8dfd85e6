//! No damage is ever served.
#![allow(clippy::unwrap_used)]

use crash::rot::{Moment, RotTally, run};

/// Faults of each kind of moment.
const FAULTS: u64 = 4000;
/// Of one pool.
const EACH: u64 = 200;

fn inject(moment: Moment) -> RotTally {
    let mut total = RotTally::default();
    for seed in 1..=FAULTS / EACH {
        total.add(run(seed, moment, EACH));
    }
    println!("{moment:?}: {total:?}");
    assert!(total.served.is_empty(), "{}", total.served.join("\n"));
    assert_eq!(total.faults, FAULTS);
    total
}

#[test]
fn damage_of_an_open_pool_is_never_served() {
    let total = inject(Moment::Open);
    assert!(total.detected > FAULTS / 4, "{total:?}");
    assert_eq!(total.unprotected, 0);
}

#[test]
fn damage_of_a_sealed_pool_is_never_served() {
    let total = inject(Moment::Sealed);
    assert!(total.detected > FAULTS / 8 && total.refused > FAULTS / 40, "{total:?}");
    assert_eq!(total.unprotected, 0);
}

#[test]
fn damage_of_an_unsealed_pool_shows_only_where_a_resync_compares() {
    let total = inject(Moment::Unsealed);
    assert!(total.detected > 0 && total.refused > 0, "{total:?}");
    assert!(total.unprotected > 0, "then the documentation promises too little: {total:?}");
}

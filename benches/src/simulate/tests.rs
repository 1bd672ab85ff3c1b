//! Every case at every setting, with few requests: the run itself finds broken promises. And that it would find them.

use super::simulation::simulate;
use super::sweep::{CASES, Case, Setup};
use super::table;
use super::tally::Row;

const REQUESTS: u64 = 300;

fn run(case: &Case, setup: &Setup, seed: u64) -> Row {
    simulate(case, setup, "test", seed, REQUESTS).unwrap()
}

#[test]
fn every_setting_keeps_what_the_scheduler_promises() {
    for case in &CASES {
        let columns = table::head(case, REQUESTS, 1.0).lines().last().map(|rule| rule.matches('|').count());
        for (name, change) in case.variants {
            let mut setup = case.setup;
            change(&mut setup);
            let row = simulate(case, &setup, name, 5, REQUESTS);
            let row = row.unwrap_or_else(|failure| panic!("{}, {name}: {failure}", case.workload));
            assert!(row.good_share <= 1.0 && row.busy_share < 1.1 && row.cached_share < 1.0, "{row:?}");
            assert!(row.jain.is_some_and(|jain| jain > 0.0 && jain <= 1.0 + 1e-9), "{row:?}");
            assert_eq!(Some(table::row(&row).matches('|').count()), columns, "{name}");
        }
    }
}

#[test]
fn a_seed_decides_everything() {
    let case = &CASES[2];
    assert_eq!(run(case, &case.setup, 1), run(case, &case.setup, 1));
    assert_ne!(run(case, &case.setup, 1), run(case, &case.setup, 2));
}

#[test]
fn prefixes_are_found_again_where_they_are_kept() {
    let case = &CASES[0];
    let cached = |cache| run(case, &Setup { cache, ..case.setup }, 3).cached_share;
    assert!(cached(true) > 0.3, "{}", cached(true));
    assert_eq!(cached(false), 0.0);
}

#[test]
fn what_is_scarce_shows_in_the_counts() {
    let mixed = &CASES[2];
    // As many blocks as one request may need, a short queue, and ten times the load.
    let scarce = run(mixed, &Setup { blocks: 512, waiting: 16, load: 10.0, ..mixed.setup }, 4);
    assert!(scarce.preemptions > 0 && scarce.refused > 0, "{scarce:?}");
    assert!(scarce.good_share < run(mixed, &mixed.setup, 4).good_share);
    let chat = &CASES[3];
    let slow = run(chat, &Setup { load: 20.0, ..chat.setup }, 4);
    assert!(slow.late > 0 && slow.left > 0, "{slow:?}");
}

#[test]
fn what_never_fits_is_an_error() {
    let case = &CASES[1];
    let setup = Setup { context: 64, ..case.setup };
    let failure = simulate(case, &setup, "test", 1, REQUESTS).unwrap_err().to_string();
    assert!(failure.contains("prompt"), "{failure}");
}

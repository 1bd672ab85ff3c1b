//! A process that cannot do its work any more ends with the code that says so, even where something hangs.

#![allow(clippy::unwrap_used)]

use server::process;
use std::process::Command;
use std::time::{Duration, Instant};

/// Set in the child, which gives up.
const CHILD: &str = "TENSORGATE_TEST_GIVES_UP";

#[test]
fn a_process_that_gives_up_ends_within_seconds() {
    if std::env::var_os(CHILD).is_some() {
        process::give_up("the device of a language model is lost");
        assert!(process::is_giving_up());
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let began = Instant::now();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "a_process_that_gives_up_ends_within_seconds"]).env(CHILD, "1");
    let status = child.output().unwrap().status;
    assert_eq!(status.code(), Some(process::GAVE_UP.into()));
    assert!(began.elapsed() < Duration::from_secs(30));
}

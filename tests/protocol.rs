//! What must come of each situation by name: `docs/PROTOCOL.md` is the text, these are its consequences.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::*;
use tieline::protocol::control::State;

fn pair() -> World {
    let mut world = World::new(1, [EndSetup::new(1), EndSetup::new(2)]);
    world.start_both();
    world
}

#[test]
fn two_ends_come_together() {
    let mut world = pair();
    assert!(world.run_until(secs(2), World::together), "not together after 2 s");
    assert_eq!(world.status(A).state, State::Up);
}

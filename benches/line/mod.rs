//! A link in memory, for its halves: what the packet loops own once it is up.

#[path = "../../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use support::{EndSetup, World, end::Process, secs};
use tieline::protocol::levels::Levels;
use tieline::protocol::session::Cipher;
use tieline::protocol::{Receiver, Sender};

/// Brings a link up in virtual time and gives the halves of both its ends and what they count, with one hybrid session of
/// `cipher` in them, in which inner checksums may be partial. The engines are gone: nothing is ever rekeyed.
pub fn up(cipher: Cipher) -> [(Sender, Receiver, Arc<Levels>); 2] {
    let mut world = World::new(1, [1, 2].map(|secret| setup(secret, cipher)));
    world.start_both();
    assert!(world.run_until(secs(60), World::together), "the link did not come up");
    world.ends.map(|end| {
        let Some(Process { link, sender, receiver, .. }) = end.process else { panic!("an end is gone") };
        let session = link.status().session;
        assert!(session.is_some_and(|session| session.cipher == cipher && session.post_quantum));
        assert!(sender.partial_checksum());
        (sender, receiver, link.levels())
    })
}

fn setup(secret: u8, cipher: Cipher) -> EndSetup {
    let mut setup = EndSetup::new(secret);
    setup.params.aes = cipher == Cipher::Aes256Gcm;
    setup.params.chacha = cipher == Cipher::ChaCha20Poly1305;
    setup
}

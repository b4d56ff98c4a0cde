//! Any bytes as what happens to the two ends of a link: the world of the simulation (`tests/support`), with the fuzzer in
//! the place of its dice. It rules the network, time, the machines, who starts and who stops; it lies in the name of the
//! peer, with its keys, and forges without them. What must never happen is watched after each event, by the same watch.
//!
//! Input: three settings, then events, each a letter and its arguments. All of it can be written by hand: an argument is a
//! byte of which '0' is 0, '1' is 1, and so on. `corpus/engine` is made so. Datagrams sent are held until the input
//! says what becomes of them; only `r` lets them pass. With TIELINE_TRACE set, an input that fails prints what happened.
#![no_main]

#[path = "engine/deeds.rs"]
mod deeds;
#[path = "engine/lies.rs"]
mod lies;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::{cell::Cell, rc::Rc, time::Duration};

use libfuzzer_sys::fuzz_target;
use support::{A, B, EndSetup, Fate, Puppet, World, ms};
use tieline::protocol::SocketId;
use tieline::protocol::link::{RekeyTimes, WayParams};
use tieline_fuzz::Bytes;

/// The most events of one input, so that no run is long.
const EVENTS: usize = 250;
/// The most timeouts, arrivals and frames that may follow from them.
const STEPS: usize = 3_000;

fuzz_target!(|input: &[u8]| {
    let mut story = Story::new(Bytes(input));
    for _ in 0..EVENTS {
        if story.input.is_empty() || story.steps == 0 {
            break;
        }
        story.happen();
    }
});

/// What is going on.
struct Story<'a> {
    input: Bytes<'a>,
    world: World,
    /// What the network does with a datagram just sent.
    fate: Rc<Cell<Fate>>,
    /// What is left of [`STEPS`].
    steps: usize,
    /// Each end once more, played by one who stole its keys.
    puppets: [Puppet; 2],
    /// The session each of them holds.
    held: [Option<support::puppet::Held>; 2],
}

impl<'a> Story<'a> {
    fn new(mut input: Bytes<'a>) -> Story<'a> {
        let setups = setups(&mut input);
        let stranger = support::scenes::stranger();
        let puppets = [A, B].map(|end| Puppet::new(&setups[end], &setups[1 - end], stranger));
        let mut world = World::new(1, setups);
        let fate = Rc::new(Cell::new(Fate::Hold));
        world.log = Some(Vec::new());
        if std::env::var_os("TIELINE_TRACE").is_some() {
            let lines = support::trace::Lines::default();
            world.keep_lines(lines.clone());
            print_on_panic(lines);
        }
        world.decide({
            let fate = fate.clone();
            move |_| fate.get()
        });
        world.start_both();
        Story { input, world, fate, steps: STEPS, puppets, held: [None, None] }
    }

    /// The next argument.
    fn number(&mut self) -> usize {
        number(&mut self.input)
    }

    fn end(&mut self) -> usize {
        self.number() % 2
    }

    fn span(&mut self) -> Duration {
        ms([0, 1, 10, 100, 300, 1_000, 3_000, 10_000, 30_000, 120_000][self.number() % 10])
    }

    fn happen(&mut self) {
        let event = self.input.u8();
        // Any byte is some event, and the letters are themselves.
        match b'a' + event.wrapping_sub(b'a') % 26 {
            b'a' => self.deliver_from_elsewhere(),
            b'b' => self.forge_reflected(),
            b'c' => self.deliver(true),
            b'd' => self.deliver(false),
            b'e' => self.puppet_opens(),
            b'f' => self.frame(),
            b'g' => self.puppet_says(),
            b'h' => self.notice(),
            b'i' => self.lie(),
            b'j' => self.forge_junk(),
            b'k' => self.forge_cut(),
            b'l' => self.leap(),
            b'm' => self.forge_flipped(),
            b'n' => self.next(),
            b'o' => self.forge_old(),
            b'p' => self.send_failure(),
            b'q' => self.close(),
            b'r' => self.run(Fate::Pass),
            b's' => self.restart(),
            b't' => self.timeout(),
            b'u' => self.addresses(),
            b'v' => self.rebind(),
            b'w' => self.run(Fate::Hold),
            b'x' => self.lose(),
            b'y' => self.dry(),
            _ => self.suspend(),
        }
        if self.world.ends.iter().all(|end| end.setup.lateness.is_zero()) {
            self.pass(Duration::ZERO); // what is due is never left undone
        }
    }
}

fn print_on_panic(lines: support::trace::Lines) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        lines.take().iter().for_each(|line| eprintln!("{line}"));
        before(panic); // libFuzzer's, which does not return
    }));
}

fn number(input: &mut Bytes) -> usize {
    usize::from(input.u8().wrapping_sub(b'0'))
}

/// How the ends are set up: what each bit and number means stands beside it.
fn setups(input: &mut Bytes) -> [EndSetup; 2] {
    let [wishes, keys, times] = [number(input), number(input), number(input)];
    [A, B].map(|end| {
        let bit = |of: usize, bit: usize| of & bit != 0;
        // 8: which end has the lower public key.
        let mut setup = EndSetup::new(if bit(keys, 8) { 2 - end as u8 } else { 1 + end as u8 });
        // 1, 2: hybrid at A, at B. 4: A has no AES. 8: B has no ChaCha20.
        setup.params.post_quantum = bit(wishes, 1 << end);
        setup.params.aes = end == B || !bit(wishes, 4);
        setup.params.chacha = end == A || !bit(wishes, 8);
        // 1: a preshared key, 2: … that differs. 4: A has no address for B.
        setup.psks = bit(keys, 1).then(|| [7 + (bit(keys, 2) && end == B) as u8; 32]).into_iter().collect();
        setup.knows_peer = end == B || !bit(keys, 4);
        // 16: A has two ways. 32, 64: A and B send second copies.
        let ways = if end == A && bit(keys, 16) { 2 } else { 0 };
        setup.params.ways = (0..ways).map(|n| WayParams { socket: SocketId(n), priority: n.into() }).collect();
        setup.params.duplicate = bit(keys, 32 << end);
        // 1, 2: the interval. 4: sessions are rekeyed soon. 8: drivers are late.
        setup.params.interval = ms([[1_000; 2], [50; 2], [200, 5_000], [60_000, 1_000]][times % 4][end]);
        if bit(times, 4) {
            setup.params.rekey = RekeyTimes { initiator: ms(2_000), responder: ms(2_500) };
        }
        setup.lateness = if bit(times, 8) { ms(20) } else { Duration::ZERO };
        setup
    })
}

//! What an end's treatment of inner packets costs or gains: each load with it and without, in turns.
//!
//! ```text
//! cargo bench --bench inner                               # 5 rounds of 3 s of each
//! cargo bench --bench inner -- --seconds 10 --rounds 3
//! ```
//!
//! | load | with |
//! |---|---|
//! | a UDP flow like one of QUIC, by segmentation offload at one end and receive offload at the other | `coalesce_udp` |
//! | four TCP streams; small UDP packets | source filter, and the memory of what came out of the link |
//!
//! Both ends, the programs that send and receive, and the cable between are in this one process and share the machine's cores. It
//! takes root, or a machine that lets users make user namespaces.

#![allow(clippy::unwrap_used, clippy::expect_used)] // that is how it ends

#[path = "../../tests/common/mod.rs"]
mod common;
mod datagrams;
#[path = "../line/mod.rs"]
mod line;
#[path = "../aead/scene.rs"]
mod scene;

use clap::Parser;
use datagrams::Flow;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use scene::{Scene, Site};
use std::error::Error;
use std::fs::File;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tieline::dataplane::Treatment;
use tieline::packet::OwnAddresses;
use tieline::packet::returns::Returns;
use tieline::packet::source_filter::SourceFilter;
use tieline::protocol::session::Cipher;
use tieline::sys::netns::become_root;

/// TCP connections at a time.
const STREAMS: usize = 4;
/// What a round may take beyond its time: more, and something hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Prefixes that the source filter looks through, none of them the right one.
const PREFIXES: u8 = 16;

/// What is sent through the link, and what at the far end is switched on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    Quic,
    Tcp,
    Small,
}

const LOADS: [Load; 3] = [Load::Quic, Load::Tcp, Load::Small];

/// What was seen of a load: Gbit/s of payload, and seconds of processor time for a gigabyte of it, of the whole process.
#[derive(Clone, Copy)]
struct Seen {
    rate: f64,
    price: f64,
}

/// What an end's treatment of inner packets costs or gains.
#[derive(Parser)]
struct Args {
    /// How long each measurement takes.
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// How often each is made.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// What cargo says when it means it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` runs benches too.
        println!("nothing is measured here: cargo bench --bench inner");
        return ExitCode::SUCCESS;
    }
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    become_root().map_err(|error| format!("{error}\n  help: {}", error.help()))?;
    let tun = File::options().read(true).write(true).open("/dev/net/tun");
    tun.map_err(|error| format!("opening /dev/net/tun: {error}\n  help: modprobe tun, or run it as root"))?;
    let time = Duration::from_secs(args.seconds);
    end_after((time + PATIENCE) * 2 * LOADS.len() as u32 * args.rounds);

    let scene = Scene::build();
    println!("{:8}{:>8}{:>32}{:>32}", "round", "load", "without", "with");
    let mut all = LOADS.map(|_| [Vec::new(), Vec::new()]);
    for round in 1..=args.rounds {
        for (load, seen) in LOADS.into_iter().zip(&mut all) {
            for (on, seen) in [false, true].into_iter().zip(seen.iter_mut()) {
                seen.push(measure(&scene, load, on, time)?);
            }
            show(&round.to_string(), load, seen.each_ref().map(|seen| seen[seen.len() - 1]));
        }
    }
    for (load, seen) in LOADS.into_iter().zip(all) {
        show("median", load, seen.map(median));
    }
    Ok(())
}

fn measure(scene: &Scene, load: Load, on: bool, time: Duration) -> Result<Seen, Box<dyn Error>> {
    let halves = line::up(Cipher::Aes256Gcm);
    scene.with_ends(
        halves,
        || treatment(load, on),
        |sites: &[Site; 2]| {
            let before = processor_time()?;
            let rate = match load {
                Load::Quic => datagrams::transfer(sites, Flow::Windowed, time)?,
                Load::Tcp => scene.transfer(STREAMS, time)?,
                Load::Small => datagrams::transfer(sites, Flow::Small, time)?,
            };
            let gigabytes = rate / 8.0 * time.as_secs_f64();
            Ok(Seen { rate, price: (processor_time()? - before).as_secs_f64() / gigabytes })
        },
    )
}

/// That of an end. The guards are those of a gateway, for which every packet is another host's.
fn treatment(load: Load, on: bool) -> Treatment {
    let inner = [1, 2].map(|host| (IpAddr::from([10, 99, 0, host]), 30));
    match (load, on) {
        (_, false) => Treatment::default(),
        (Load::Quic, true) => Treatment { coalesce_udp: true, own: OwnAddresses::new(inner), ..Treatment::default() },
        (Load::Tcp | Load::Small, true) => {
            let others = (0..PREFIXES).map(|n| (IpAddr::from([172, 16, n, 0]), 24));
            let routes: Vec<_> = others.chain([(IpAddr::from([10, 99, 0, 0]), 16)]).collect();
            Treatment {
                sources: Some(SourceFilter::new(&[], &routes)),
                returns: Some(Arc::new(Returns::new([3, 5, 7, 11]))),
                ..Treatment::default()
            }
        }
    }
}

/// What this process has had of the processors so far.
fn processor_time() -> Result<Duration, Box<dyn Error>> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

/// Ends the process if it has not ended by then, and with it all there is of networks and interfaces.
fn end_after(limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit);
        eprintln!("error: not over after {} s: something hangs", limit.as_secs());
        std::process::exit(1);
    });
}

fn show(name: &str, load: Load, seen: [Seen; 2]) {
    let figures = seen.map(|Seen { rate, price }| format!("{:>32}", format!("{rate:.3} Gbit/s, {price:.2} s/GB")));
    println!("{name:8}{:>8}{}", format!("{load:?}"), figures.concat());
}

/// The middle of each figure by itself.
fn median(seen: Vec<Seen>) -> Seen {
    let middle = |figure: fn(&Seen) -> f64| {
        let mut figures: Vec<f64> = seen.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    Seen { rate: middle(|seen| seen.rate), price: middle(|seen| seen.price) }
}

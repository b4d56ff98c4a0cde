//! What the AEAD costs: TCP through the packet loops as they are, and through the same loops with halves that leave it out.
//!
//! ```text
//! cargo bench --bench aead                               # 5 rounds of 3 s of each
//! cargo bench --bench aead -- --seconds 10 --rounds 3
//! ```
//!
//! Both ends, the streams and the cable between are in this one process and share the machine's cores, as they do in the rig. It
//! takes root, or a machine that lets users make user namespaces. The halves without the AEAD are in `bare.rs`, and
//! nothing in `src/` can name them.

#![allow(clippy::unwrap_used, clippy::expect_used)] // that is how it ends

mod bare;
#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../line/mod.rs"]
mod line;
mod scene;

use clap::Parser;
use scene::Scene;
use std::error::Error;
use std::fs::File;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use tieline::dataplane::Treatment;
use tieline::protocol::session::Cipher;
use tieline::sys::netns::become_root;

/// TCP connections at a time.
const STREAMS: usize = 4;
/// What a round may take beyond its time: more, and something hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is measured, in this order in each round: what the ratios are of lies next to them.
const KINDS: [Option<Cipher>; 3] = [Some(Cipher::Aes256Gcm), None, Some(Cipher::ChaCha20Poly1305)];

/// The price of the AEAD, in TCP throughput through the packet loops.
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
        println!("nothing is measured here: cargo bench --bench aead");
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
    end_after((time + PATIENCE) * KINDS.len() as u32 * args.rounds);

    let scene = Scene::build();
    let mut rates = KINDS.map(|_| Vec::new());
    println!("{STREAMS} TCP streams for {} s, Gbit/s\n", args.seconds);
    line_of("round", KINDS.map(|kind| kind.map_or("no AEAD", Cipher::name).to_owned()));
    for round in 1..=args.rounds {
        for (kind, rates) in KINDS.into_iter().zip(&mut rates) {
            rates.push(measure(&scene, kind, time)?);
        }
        line_of(&round.to_string(), rates.each_ref().map(|rates| format!("{:.2}", rates[rates.len() - 1])));
    }
    let medians = rates.map(median);
    line_of("median", medians.map(|rate| format!("{rate:.2}")));
    line_of("ratio", medians.map(|rate| format!("{:.2}", rate / medians[1])));
    Ok(())
}

fn measure(scene: &Scene, kind: Option<Cipher>, time: Duration) -> Result<f64, Box<dyn Error>> {
    let transfer = |_: &_| Ok(scene.transfer(STREAMS, time)?);
    match kind {
        Some(cipher) => scene.with_ends(line::up(cipher), Treatment::default, transfer),
        None => scene.with_ends([bare::halves(), bare::halves()], Treatment::default, transfer),
    }
}

/// Ends the process if it has not ended by then, and with it all there is of networks and interfaces.
fn end_after(limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit);
        eprintln!("error: not over after {} s: something hangs", limit.as_secs());
        std::process::exit(1);
    });
}

fn line_of(name: &str, figures: [String; KINDS.len()]) {
    println!("{name:8}{}", figures.map(|figure| format!("{figure:>20}")).concat());
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    let middle = rates.len() / 2;
    if rates.len() % 2 == 1 { rates[middle] } else { (rates[middle - 1] + rates[middle]) / 2.0 }
}

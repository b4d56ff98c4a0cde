//! What a flood costs a running link: a TCP transfer through it, with datagrams of one kind after the other coming in beside it, at
//! a rate that is the same for all.
//!
//! ```text
//! cargo bench --bench floods                             # 3 rounds of 4 s of each kind, at 300,000 datagrams/s
//! cargo bench --bench floods -- --kinds closed,garbage --seconds 10
//! ```
//!
//! Two ends run as `tieline up` starts them, sandbox and all; they, the transfer and the flood share this machine's cores. The price
//! the machine itself takes is that of the same flood to a port where nobody listens: what is left beside it is 1.00. It takes
//! root: the floods run before all else, as what comes over a wire does.

#![allow(clippy::unwrap_used, clippy::expect_used)] // that is how it ends

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../../tests/flood/mod.rs"]
mod flood;
mod scene;
mod table;

use clap::Parser;
use common::lab::Lab;
use scene::{Kind, Scene};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;
use table::Table;
use tieline::sys::netns::become_root;

/// What a measurement may take beyond its time: more, and something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// The price of floods, in TCP throughput through a link.
#[derive(Parser)]
struct Args {
    /// How long each measurement takes.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How often each is made.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Datagrams a second.
    #[arg(long, default_value_t = 300_000)]
    rate: u64,
    /// Some kinds only, by name.
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<String>,
    /// TCP connections.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// What cargo says when it means it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --all-targets` runs benches too.
        println!("nothing is measured here: cargo bench --bench floods");
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    if let Err(error) = become_root() {
        eprintln!("error: {error}\n  help: {}", error.help());
        return ExitCode::FAILURE;
    }
    let kinds: Vec<_> = Kind::ALL.into_iter().filter(|kind| wanted(&args, *kind)).collect();
    let time = Duration::from_secs(args.seconds);
    end_after((time + PATIENCE) * (kinds.len() as u32 * args.rounds + 1));

    let mut lab = Lab::new();
    let scene = Scene::build(&mut lab);
    let ends = scene.up(&lab);
    let mut table = Table::new(&kinds);
    println!("{}\n", Table::head(args.streams, time));
    for round in 1..=args.rounds {
        for kind in &kinds {
            let seen = scene.measure(&lab, &ends, *kind, args.rate, args.streams, time);
            println!("{round:>2} {}", table.add(*kind, seen));
        }
    }
    println!("\n{}", table.summary());
    ExitCode::SUCCESS
}

fn wanted(args: &Args, kind: Kind) -> bool {
    args.kinds.is_empty() || args.kinds.iter().any(|name| name == kind.name())
}

/// Ends the process if it has not ended by then, and with it all there is of networks and links.
fn end_after(limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit);
        eprintln!("error: not over after {} s: something hangs", limit.as_secs());
        std::process::exit(1);
    });
}

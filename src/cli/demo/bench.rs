//! `tieline demo --bench`: what the link does at its limits, in figures to compare with other days and other machines.
//!
//! Seven parts, one after the other and each as long: round trips on the idle link; one TCP connection, there and back, with the
//! processor time both ends take for it; four at once, there and back; round trips beside one; and last, because it leaves full
//! queues behind, a flood of small datagrams. All of it shares the machine's cores with both ends.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::flood::{Flood, PAYLOAD};
use super::report::{Link, Rtt, gbit_per_s, known, table};
use super::site::End;
use super::transfer::{Load, Tally};
use super::{DemoError, PORT, Stage, at, join};

/// Between two echo requests: p99 wants many of them.
const PING_PAUSE: Duration = Duration::from_millis(1);
/// TCP connections at once, where it is not one.
const STREAMS: usize = 4;
/// A transfer that pings are measured beside begins so much before them and ends so much after.
const MARGIN: Duration = Duration::from_millis(200);

/// What the bench measured. Of each pair the first is from hq to branch.
pub struct Bench {
    idle: Rtt,
    /// One connection.
    single: [Tally; 2],
    /// Processor time of both ends for `single`.
    cpu: Duration,
    /// Four connections at once.
    several: [Tally; 2],
    /// Beside one connection from hq to branch.
    loaded: Rtt,
    /// From hq to branch.
    flood: Flood,
}

impl Bench {
    /// Measures everything, each part for this time.
    pub fn measure(stage: &Stage<'_>, ends: [&End; 2], time: Duration) -> Result<Self, DemoError> {
        let idle = pings(stage, "idle", time)?;
        let before = cpu_time(ends)?;
        let single = stage.both_ways(Load::Timed(time), 1)?;
        let cpu = cpu_time(ends)?.saturating_sub(before);
        let several = stage.both_ways(Load::Timed(time), STREAMS)?;
        let loaded = pings_under_load(stage, time)?;
        let flood = flood(stage, time)?;
        Ok(Self { idle, single, cpu, several, loaded, flood })
    }

    /// The figures as one line of JSON. Times are in ms, rates in Gbit/s or datagrams/s; what is not known is null.
    pub fn json(&self, link: &Link) -> String {
        let tcp = |tallies: &[Tally; 2]| {
            let [there, back] = rates(tallies);
            json!({ "hq_to_branch_gbit_per_s": there, "branch_to_hq_gbit_per_s": back })
        };
        let object = json!({
            "version": 1,
            "connect_ms": link.connect_ms(),
            "tcp": tcp(&self.single),
            "tcp_4": tcp(&self.several),
            "cpu_s_per_gb": self.cpu_s_per_gb(),
            "udp_64": {
                "sent": self.flood.sent,
                "delivered": self.flood.received,
                "delivered_per_s": self.flood.delivered_per_s(),
                "loss_ratio": self.flood.loss_ratio(),
            },
            "ping": { "idle": percentiles_json(&self.idle), "loaded": percentiles_json(&self.loaded) },
            "session": link.session(),
            "path_mtu": link.path_mtu(),
        });
        format!("{object}\n")
    }

    /// The figures as a table to read.
    pub fn table(&self, link: &Link) -> String {
        let tcp = |tallies: &[Tally; 2]| {
            let [there, back] = rates(tallies);
            format!("{there:.2} Gbit/s hq → branch, {back:.2} Gbit/s branch → hq")
        };
        table(&[
            ("TCP, 1 stream", tcp(&self.single)),
            ("TCP, 4 streams", tcp(&self.several)),
            ("CPU, 1 stream", format!("{:.2} s per GB, both ends together", self.cpu_s_per_gb())),
            ("UDP, 64 bytes", flood_words(&self.flood)),
            ("RTT, idle", percentiles(&self.idle)),
            ("RTT, 1 stream", percentiles(&self.loaded)),
            ("cipher", known(&link.session()["cipher"])),
            ("path MTU", format!("{} bytes", known(link.path_mtu()))),
        ])
    }

    /// Seconds of processor time of both ends together for 10⁹ bytes of TCP payload.
    fn cpu_s_per_gb(&self) -> f64 {
        let bytes: u64 = self.single.iter().map(|tally| tally.bytes).sum();
        self.cpu.as_secs_f64() / (bytes.max(1) as f64 / 1e9)
    }
}

fn cpu_time(ends: [&End; 2]) -> Result<Duration, DemoError> {
    let [hq, branch] = ends;
    Ok(hq.cpu_time()? + branch.cpu_time()?)
}

fn pings(stage: &Stage<'_>, when: &str, time: Duration) -> Result<Rtt, DemoError> {
    let rtt = stage.ping(PING_PAUSE, |_, elapsed| elapsed >= time)?;
    stage.narrator.say(&format!("round trip, {when}: {}", percentiles(&rtt)));
    Ok(rtt)
}

/// Round trips beside a TCP connection, none of them before it has begun or after it.
fn pings_under_load(stage: &Stage<'_>, time: Duration) -> Result<Rtt, DemoError> {
    let [hq, branch] = stage.sites;
    thread::scope(|scope| {
        let pinging = scope.spawn(|| {
            thread::sleep(MARGIN);
            pings(stage, "beside TCP", time)
        });
        let load = stage.transfer(hq, branch, Load::Timed(time + 2 * MARGIN), 1);
        let rtt = join(pinging);
        load.and(rtt)
    })
}

fn flood(stage: &Stage<'_>, time: Duration) -> Result<Flood, DemoError> {
    let [hq, branch] = stage.sites;
    let [from, to] = [hq, branch].map(|site| SocketAddr::new(site.inner.into(), PORT));
    let open = |site, here: SocketAddr, there: SocketAddr| {
        at(site, "opening a UDP socket", || {
            let socket = UdpSocket::bind(here)?;
            socket.connect(there)?;
            Ok(socket)
        })
    };
    let (sender, receiver) = (open(hq, from, to)?, open(branch, to, from)?);
    let flood = Flood::run(&sender, &receiver, time, stage.stop);
    let flood = flood.map_err(|e| DemoError::io("flooding the link with datagrams", e))?;
    stage.narrator.say(&format!("UDP flood, {PAYLOAD} bytes: {}", flood_words(&flood)));
    Ok(flood)
}

fn rates(tallies: &[Tally; 2]) -> [f64; 2] {
    tallies.map(|tally| gbit_per_s(tally.bytes, tally.took))
}

fn flood_words(flood: &Flood) -> String {
    let (rate, lost) = (flood.delivered_per_s(), 100.0 * flood.loss_ratio());
    format!("{rate:.0} packets/s delivered hq → branch, {lost:.1} % of those sent lost")
}

fn percentiles(rtt: &Rtt) -> String {
    let lost = format!("{} of {} pings lost", rtt.lost(), rtt.sent);
    match [50, 99].map(|percent| rtt.percentile(percent)) {
        [Some(p50), Some(p99)] => format!("p50 {p50:.3} ms, p99 {p99:.3} ms ({lost})"),
        _ => format!("no answer ({lost})"),
    }
}

fn percentiles_json(rtt: &Rtt) -> Value {
    json!({
        "sent": rtt.sent,
        "answered": rtt.answered.len(),
        "p50_ms": rtt.percentile(50),
        "p99_ms": rtt.percentile(99),
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{link, tally};
    use super::*;

    fn bench() -> Bench {
        let rtt = |answered: u64, sent| Rtt { sent, answered: (1..=answered).map(Duration::from_millis).collect() };
        Bench {
            idle: rtt(200, 200),
            single: [tally(1_000_000_000), tally(500_000_000)],
            cpu: Duration::from_secs(3),
            several: [tally(2_000_000_000), tally(1_000_000_000)],
            loaded: rtt(0, 4),
            flood: Flood { sent: 4_000, received: 3_000, took: Duration::from_secs(2) },
        }
    }

    #[test]
    fn json_gives_the_figures() {
        let object: Value = serde_json::from_str(&bench().json(&link())).unwrap();
        assert_eq!(object["tcp"], json!({ "hq_to_branch_gbit_per_s": 4.0, "branch_to_hq_gbit_per_s": 2.0 }));
        assert_eq!(object["tcp_4"], json!({ "hq_to_branch_gbit_per_s": 8.0, "branch_to_hq_gbit_per_s": 4.0 }));
        assert_eq!(object["cpu_s_per_gb"], 2.0);
        assert_eq!(
            object["udp_64"],
            json!({ "sent": 4_000, "delivered": 3_000, "delivered_per_s": 1_500.0, "loss_ratio": 0.25 })
        );
        let idle = json!({ "sent": 200, "answered": 200, "p50_ms": 100.0, "p99_ms": 198.0 });
        let loaded = json!({ "sent": 4, "answered": 0, "p50_ms": null, "p99_ms": null });
        assert_eq!(object["ping"], json!({ "idle": idle, "loaded": loaded }));
        assert_eq!((&object["session"]["cipher"], &object["path_mtu"]), (&json!("aes-256-gcm"), &json!(1440)));
    }

    #[test]
    fn the_table_gives_the_figures() {
        let expected = "
  TCP, 1 stream     4.00 Gbit/s hq → branch, 2.00 Gbit/s branch → hq
  TCP, 4 streams    8.00 Gbit/s hq → branch, 4.00 Gbit/s branch → hq
  CPU, 1 stream     2.00 s per GB, both ends together
  UDP, 64 bytes     1500 packets/s delivered hq → branch, 25.0 % of those sent lost
  RTT, idle         p50 100.000 ms, p99 198.000 ms (0 of 200 pings lost)
  RTT, 1 stream     no answer (4 of 4 pings lost)
  cipher            aes-256-gcm
  path MTU          1440 bytes
";
        assert_eq!(bench().table(&link()), expected);
    }
}

//! What was measured, as lines to read and medians to compare.

use crate::scene::{Kind, Seen};
use std::time::Duration;

/// All that was seen, by kind.
pub struct Table(Vec<(Kind, Vec<Seen>)>);

impl Table {
    pub fn new(kinds: &[Kind]) -> Self {
        Table(kinds.iter().map(|kind| (*kind, Vec::new())).collect())
    }

    pub fn head(streams: usize, time: Duration) -> String {
        let columns = ["offered", "arrived", "Gbit/s", "no room", "lost", "RSS KB", "engine", "ingress", "egress"];
        let columns = columns.map(|name| format!("{name:>9}")).concat();
        format!(
            "{streams} TCP streams, {} s each; offered and arrived in kpps; no room: datagrams/s the right socket had none for;\n\
             lost: control messages at either end; CPU of the right end's threads in percent of a core\n\n{:3}{:14}{columns}  \
             malformed, unauthentic, replayed, no_session in thousands/s",
            time.as_secs(),
            "",
            "kind"
        )
    }

    /// Takes a measurement and gives its line.
    pub fn add(&mut self, kind: Kind, seen: Seen) -> String {
        let line = seen.line(kind);
        if let Some((_, all)) = self.0.iter_mut().find(|(known, _)| *known == kind) {
            all.push(seen);
        }
        line
    }

    /// Medians, and what they are of the price.
    pub fn summary(&self) -> String {
        let columns = ["arrived", "Gbit/s", "ratio", "lost", "of", "engine"].map(|name| format!("{name:>9}")).concat();
        let mut text = format!("{:14}{columns}  always Up\n", "median");
        for (kind, all) in &self.0 {
            let sum = |f: fn(&Seen) -> u64| all.iter().map(f).sum::<u64>();
            let ratio = self.median(*kind, Seen::rate).zip(self.median(kind.price(), Seen::rate));
            let figures = [
                format!("{:.0}", self.median(*kind, Seen::arrived).unwrap_or(0.0) / 1e3),
                format!("{:.2}", self.median(*kind, Seen::rate).unwrap_or(0.0)),
                ratio.map_or("-".into(), |(rate, price)| format!("{:.2}", rate / price)),
                sum(|seen| seen.control.iter().map(|(_, lost)| lost).sum()).to_string(),
                sum(|seen| seen.control.iter().map(|(came, lost)| came + lost).sum()).to_string(),
                format!("{:.1}", self.median(*kind, |seen| seen.cpu("tieline")).unwrap_or(0.0)),
            ];
            let up = all.iter().all(Seen::stayed_up);
            text += &format!("{:14}{}  {up}\n", kind.name(), figures.map(|figure| format!("{figure:>9}")).concat());
        }
        text
    }

    fn median(&self, kind: Kind, of: impl Fn(&Seen) -> f64) -> Option<f64> {
        let all = &self.0.iter().find(|(known, _)| *known == kind)?.1;
        let mut figures: Vec<_> = all.iter().map(of).collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let upper = *figures.get(middle)?;
        Some(if figures.len() % 2 == 1 { upper } else { (figures[middle - 1] + upper) / 2.0 })
    }
}

impl Seen {
    /// Gbit/s through the link.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 * 8e-9 / self.time.as_secs_f64()
    }

    /// Datagrams a second that reached the right end's machine by the flood's wire.
    pub fn arrived(&self) -> f64 {
        self.per_second(self.right[1].arrived - self.right[0].arrived)
    }

    /// Percent of a core that a thread of the right end took.
    pub fn cpu(&self, thread: &str) -> f64 {
        self.per_second(self.right[1].cpu_since(&self.right[0], thread)) / 1e7
    }

    pub fn stayed_up(&self) -> bool {
        self.left[1].stayed_up_since(&self.left[0]) && self.right[1].stayed_up_since(&self.right[0])
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.time.as_secs_f64()
    }

    fn line(&self, kind: Kind) -> String {
        let [before, after] = &self.right;
        let figures = [
            format!("{:.0}", self.per_second(self.sent) / 1e3),
            format!("{:.0}", self.arrived() / 1e3),
            format!("{:.2}", self.rate()),
            format!("{:.0}", self.per_second(after.no_room - before.no_room)),
            format!("{}+{}", self.control[0].1, self.control[1].1),
            format!("{:+}", after.rss as i64 - before.rss as i64),
            format!("{:.1}", self.cpu("tieline")),
            format!("{:.0}", self.cpu("tieline-ingress")),
            format!("{:.0}", self.cpu("tieline-egress")),
        ];
        let drops = after.dropped_since(before).map(|count| format!("{:.1}", self.per_second(count) / 1e3)).join(", ");
        let up = if self.stayed_up() { "" } else { "; it was not always Up" };
        let opened = if kind == Kind::Opens { format!("; {}", self.opens()) } else { String::new() };
        format!("{:14}{}  {drops}{up}{opened}", kind.name(), figures.map(|figure| format!("{figure:>9}")).concat())
    }

    /// What one with the key got, a second.
    fn opens(&self) -> String {
        let o = &self.opened;
        format!(
            "{} Knocks, {} Challenges, {} Inits, {} Responses ({:.1}/s), {} wrong",
            o.knocks,
            o.challenges,
            o.inits,
            o.responses,
            o.responses as f64 / o.took.as_secs_f64(),
            o.wrong
        )
    }
}

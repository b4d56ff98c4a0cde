//! Logs, always on standard error: for people, for the journal (one line each, with its priority), or JSON.

use std::env;
use std::fmt;
use std::io::{self, IsTerminal};

use clap::{Args, ValueEnum};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use super::Failure;

/// What bare words are levels.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Options for the logs, on all commands.
#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// How much to log: off, error, warn, info, debug, trace, or a filter such as
    /// info,tieline::protocol=debug [default: TIELINE_LOG, or info]
    #[arg(long, global = true, value_name = "LEVEL", display_order = 900)]
    log_level: Option<String>,
    /// How logs are written to standard error: human (under systemd one line each with its priority) or json
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        default_value = "human",
        hide_possible_values = true,
        hide_default_value = true,
        display_order = 901
    )]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum LogFormat {
    Human,
    Json,
}

/// Starts logging for the whole process.
pub(super) fn init(args: &LogArgs) -> Result<(), Failure> {
    let filter = match (&args.log_level, env::var("TIELINE_LOG")) {
        (Some(text), _) => filter("--log-level", text)?,
        (None, Ok(text)) if !text.trim().is_empty() => filter("TIELINE_LOG", &text)?,
        (None, Err(env::VarError::NotUnicode(_))) => return Err(bad_filter("TIELINE_LOG", "it is not UTF-8")),
        (None, _) => filter("", "info")?,
    };
    let logs = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    // A second call in one process keeps the first one's settings.
    let _ = match args.log_format {
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            logs.with(lines).try_init()
        }
        LogFormat::Human if stderr_is_the_journal() => logs.with(lines.event_format(Journal)).try_init(),
        LogFormat::Human => {
            let colours = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            logs.with(lines.with_ansi(colours).with_target(false)).try_init()
        }
    };
    Ok(())
}

/// A bare level is for tieline; the libraries below it then speak up only to warn.
fn filter(from: &str, text: &str) -> Result<Targets, Failure> {
    let text = text.trim();
    let level = text.to_ascii_lowercase();
    let directives = match level.as_str() {
        "off" => "off".to_owned(),
        level if LEVELS.contains(&level) => format!("warn,tieline={level}"),
        _ if !text.contains('=') => return Err(bad_filter(from, &format!("`{text}` is not a level"))),
        _ => text.to_owned(),
    };
    directives.parse().map_err(|error: ParseError| bad_filter(from, &error.to_string()))
}

fn bad_filter(from: &str, why: &str) -> Failure {
    let help = format!("use one of {}, or a filter such as info,tieline::protocol=debug", LEVELS.join(", "));
    Failure::usage(format!("{from}: {why}"), help)
}

/// systemd tells the device and inode of the stream that it reads (systemd.exec(5), `$JOURNAL_STREAM`): standard
/// error may have been redirected since.
fn stderr_is_the_journal() -> bool {
    let Ok(stat) = nix::sys::stat::fstat(io::stderr()) else { return false };
    env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// One line per event, `<priority>` first (sd-daemon(3)); the journal has time and name already.
struct Journal;

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = String::new();
        context.format_fields(Writer::new(&mut fields), event)?;
        // A second line would be an entry of its own, without its priority.
        writeln!(out, "<{}>{}", priority(*event.metadata().level()), fields.replace(['\n', '\r'], " "))
    }
}

/// Priorities of syslog (RFC 5424 §6.2.1).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_levels_and_filters_are_told_from_nonsense() {
        for text in LEVELS.into_iter().chain(["DEBUG", " info ", "info,tieline::protocol=debug", "tieline=trace"]) {
            assert!(filter("x", text).is_ok(), "{text}");
        }
        for text in ["", "loud", "infos", "tieline=loud"] {
            assert!(filter("x", text).is_err(), "{text}");
        }
        assert_eq!(filter("x", "debug").unwrap().to_string(), "tieline=debug,warn");
    }

    #[test]
    fn the_journal_gets_one_line_with_its_priority() {
        use std::sync::{Arc, Mutex};

        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().event_format(Journal).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(peer = "branch", "up with\nthe peer");
            tracing::error!("no");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "<6>up with the peer peer=\"branch\"\n<3>no\n");
    }
}

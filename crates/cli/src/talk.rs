//! Results go to stdout, talk goes to stderr.

use std::io::{IsTerminal, Write};

use crate::problem::Problem;

/// Prints a result. A reader that has gone away (`| head`) ends the program quietly.
pub(crate) fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let ended = if text.ends_with('\n') { "" } else { "\n" };
    if write!(stdout, "{text}{ended}").and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints a JSON value as a result.
pub(crate) fn json(value: &serde_json::Value) {
    out(&format!("{value:#}"));
}

/// Says something on the side.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Whether stderr shows color: a terminal, and `NO_COLOR` is not set.
pub(crate) fn color() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Columns of the terminal that results go to; 100 where there is none.
pub(crate) fn width() -> usize {
    if std::io::stdout().is_terminal() { usize::from(console::Term::stdout().size().1) } else { 100 }
}

/// Prints an error, its causes and the hint.
pub(crate) fn print_problem(problem: &Problem) {
    say(&format!("{} {}", head(), describe(problem)));
}

fn head() -> &'static str {
    if color() { "\x1b[1;31merror:\x1b[0m" } else { "error:" }
}

fn describe(problem: &Problem) -> String {
    let mut text = problem.error.to_string();
    for cause in problem.error.chain().skip(1) {
        let cause = cause.to_string();
        // Many messages already quote their cause.
        if !text.contains(&cause) {
            text.push_str(&format!("\n  caused by: {cause}"));
        }
    }
    if let Some(hint) = &problem.hint {
        text.push_str(&format!("\n\nhint: {hint}"));
    }
    text
}

/// A panic is a mistake of this program: it is said so in one line, with its place.
pub(crate) fn set_panic_message() {
    let long = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::env::var_os("STILLHOUSE_BACKTRACE").is_some() {
            return long(info);
        }
        let what = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map_or_else(String::new, |l| format!(" ({}:{})", l.file(), l.line()));
        say(&format!(
            "{} internal error: {what}{place}\n\nhint: this is a mistake in stillhouse; set \
             STILLHOUSE_BACKTRACE=1 to see where it comes from",
            head()
        ));
    }));
}

/// Warnings of the libraries go to stderr; `STILLHOUSE_LOG=info` (or `debug`) shows more.
pub(crate) fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("STILLHOUSE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(color())
        .with_target(false)
        .without_time()
        .try_init();
}

/// A duration for people: `45 s`, `12 min`, `3.5 h`.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// A size for people: `12.3 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        b if b < 1048576.0 => format!("{:.0} KiB", b / 1024.0),
        b if b < 1073741824.0 => format!("{:.1} MiB", b / 1048576.0),
        b => format!("{:.1} GiB", b / 1073741824.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_not_said_twice() {
        let inner = std::io::Error::other("disk full");
        let problem = Problem::from(anyhow::Error::from(inner).context("a.txt: disk full")).hint("make room");
        assert_eq!(describe(&problem), "a.txt: disk full\n\nhint: make room");
        let inner = std::io::Error::other("disk full");
        let problem = Problem::from(anyhow::Error::from(inner).context("writing the table"));
        assert_eq!(describe(&problem), "writing the table\n  caused by: disk full");
    }

    #[test]
    fn figures_for_people() {
        assert_eq!(duration(30.0), "30 s");
        assert_eq!(duration(720.0), "12 min");
        assert_eq!(duration(9000.0), "2.5 h");
        assert_eq!(size(3 << 20), "3.0 MiB");
    }
}

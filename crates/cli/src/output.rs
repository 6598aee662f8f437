//! Terminal output: results on stdout, everything else on stderr.

use std::io::{ErrorKind, IsTerminal, Write};

use crate::error::CliError;

/// Prints a result to stdout, with a final newline.
///
/// A closed pipe (`| head`) ends the program with exit code 0, any other write error with 1.
pub(crate) fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    if let Err(error) = write!(stdout, "{text}{newline}").and_then(|()| stdout.flush()) {
        std::process::exit(i32::from(write_failed(&error)));
    }
}

/// Reports a failed write to stdout; returns the exit code, which is 0 for a closed pipe.
pub(crate) fn write_failed(error: &std::io::Error) -> u8 {
    if error.kind() == ErrorKind::BrokenPipe {
        return 0;
    }
    status(&format!("{} cannot write to stdout: {error}", error_prefix()));
    1
}

/// Prints a result as JSON.
pub(crate) fn print_json(value: &serde_json::Value) {
    print(&format!("{value:#}"));
}

/// Prints a status line to stderr.
pub(crate) fn status(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Returns whether stderr shows color: it is a terminal and `NO_COLOR` is not set.
pub(crate) fn use_color() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Returns the width of the terminal on stdout in columns; 100 without a terminal.
pub(crate) fn terminal_width() -> usize {
    if std::io::stdout().is_terminal() { usize::from(console::Term::stdout().size().1) } else { 100 }
}

/// Prints an error, its causes and the hint.
pub(crate) fn print_error(error: &CliError) {
    status(&format!("{} {}", error_prefix(), describe(error)));
}

fn error_prefix() -> &'static str {
    if use_color() { "\x1b[1;31merror:\x1b[0m" } else { "error:" }
}

fn describe(error: &CliError) -> String {
    let mut text = error.source.to_string();
    for cause in error.source.chain().skip(1) {
        let cause = cause.to_string();
        // Many messages already quote their cause.
        if !text.contains(&cause) {
            text.push_str(&format!("\n  caused by: {cause}"));
        }
    }
    if let Some(hint) = &error.hint {
        text.push_str(&format!("\n\nhint: {hint}"));
    }
    text
}

/// Reports a panic, which is always a bug of this program, in one line with its location.
pub(crate) fn install_panic_hook() {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::env::var_os("STILLHOUSE_BACKTRACE").is_some() {
            return default_hook(info);
        }
        let message = info.payload_as_str().unwrap_or("no message");
        let location = info.location().map_or_else(String::new, |l| format!(" ({}:{})", l.file(), l.line()));
        status(&format!(
            "{} internal error: {message}{location}\n\nhint: this is a bug in stillhouse; please report it with the backtrace \
             that STILLHOUSE_BACKTRACE=1 prints",
            error_prefix()
        ));
    }));
}

/// Sends library warnings to stderr; `STILLHOUSE_LOG=info` (or `debug`) shows more.
pub(crate) fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("STILLHOUSE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(use_color())
        .with_target(false)
        .without_time()
        .try_init();
}

/// Formats a duration: `45 s`, `12 min`, `3.5 h`.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Formats a size: `12.3 MiB`.
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
    fn omits_causes_that_the_message_quotes() {
        let inner = std::io::Error::other("disk full");
        let error = CliError::from(anyhow::Error::from(inner).context("a.txt: disk full")).hint("make room");
        assert_eq!(describe(&error), "a.txt: disk full\n\nhint: make room");
        let inner = std::io::Error::other("disk full");
        let error = CliError::from(anyhow::Error::from(inner).context("writing the table"));
        assert_eq!(describe(&error), "writing the table\n  caused by: disk full");
    }

    #[test]
    fn formats_durations_and_sizes() {
        assert_eq!(duration(30.0), "30 s");
        assert_eq!(duration(720.0), "12 min");
        assert_eq!(duration(9000.0), "2.5 h");
        assert_eq!(size(3 << 20), "3.0 MiB");
    }
}

//! `stillhouse completions`: shell completion scripts.

use clap::CommandFactory;

use crate::error::{ExitStatus, Outcome};
use crate::output;

const EXAMPLES: &str = "\
Examples:
  stillhouse completions bash > ~/.local/share/bash-completion/completions/stillhouse
  stillhouse completions zsh > ~/.zfunc/_stillhouse
  stillhouse completions fish > ~/.config/fish/completions/stillhouse.fish";

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Shell
    shell: clap_complete::Shell,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "stillhouse", &mut script);
    output::print(&String::from_utf8_lossy(&script));
    Ok(ExitStatus::Success)
}

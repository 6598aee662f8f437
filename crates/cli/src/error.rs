//! Exit status of a command, and errors with an exit code and a hint.

use stillhouse_core::Error as CoreError;
use stillhouse_trainer::Error as TrainerError;

/// Exit status of a command that ran to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// Exit code 0.
    Success,
    /// Exit code 1: a check has findings, or a cell failed.
    Failure,
    /// Exit code 130: stopped with Ctrl-C; the same command continues.
    Interrupted,
}

/// Result of a command.
pub(crate) type Outcome = Result<ExitStatus, CliError>;

/// An error with its exit code and a hint.
#[derive(Debug)]
pub(crate) struct CliError {
    pub(crate) code: u8,
    pub(crate) source: anyhow::Error,
    pub(crate) hint: Option<String>,
}

impl CliError {
    /// A usage or configuration error, exit code 2.
    pub(crate) fn usage(message: impl std::fmt::Display) -> Self {
        Self { code: 2, source: anyhow::anyhow!("{message}"), hint: None }
    }

    /// A failure, exit code 1.
    pub(crate) fn failed(message: impl std::fmt::Display) -> Self {
        Self { code: 1, source: anyhow::anyhow!("{message}"), hint: None }
    }

    /// Adds a hint.
    pub(crate) fn hint(mut self, hint: impl std::fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl<E: Into<anyhow::Error>> From<E> for CliError {
    /// Configuration errors and incompatible components exit with 2, everything else with 1.
    fn from(error: E) -> Self {
        let source = error.into();
        let usage = source.chain().any(|cause| match cause.downcast_ref::<TrainerError>() {
            Some(TrainerError::Core(core) | TrainerError::Run(stillhouse_runs::Error::Core(core))) => {
                is_usage(core)
            }
            Some(e) => matches!(
                e,
                TrainerError::TwoCeWeights { .. }
                    | TrainerError::UnknownMethod(_)
                    | TrainerError::Run(stillhouse_runs::Error::Invalid { .. })
            ),
            None => cause.downcast_ref::<CoreError>().is_some_and(is_usage),
        });
        Self { code: if usage { 2 } else { 1 }, source, hint: None }
    }
}

fn is_usage(error: &CoreError) -> bool {
    match error {
        CoreError::Config { .. }
        | CoreError::UnknownName { .. }
        | CoreError::Incompatible { .. }
        | CoreError::UnknownFeature { .. } => true,
        CoreError::Other(inner) => {
            inner.downcast_ref::<stillhouse_backbones::Error>().is_some()
                || inner.downcast_ref::<stillhouse_datasets::Error>().is_some_and(is_layout)
        }
        _ => false,
    }
}

/// Returns whether a dataset is missing or has the wrong layout; broken files are failures.
fn is_layout(error: &stillhouse_datasets::Error) -> bool {
    use stillhouse_datasets::Error as E;
    matches!(
        error,
        E::MissingDataset { .. }
            | E::MissingClass { .. }
            | E::EmptyClass { .. }
            | E::UnusableFiles { .. }
            | E::MaskContent { .. }
            | E::UnexpectedFile { .. }
            | E::ListLine { .. }
            | E::MissingFile { .. }
            | E::WrongLabel { .. }
            | E::Layout { .. }
            | E::Access { .. }
            | E::Setting { .. }
            | E::Manifest(_)
    )
}

/// Maps any error of a command's preparation to a usage error (exit code 2).
pub(crate) trait Prepared<T> {
    /// Maps the error.
    fn prepared(self) -> Result<T, CliError>;
}

impl<T, E: Into<anyhow::Error>> Prepared<T> for Result<T, E> {
    fn prepared(self) -> Result<T, CliError> {
        self.map_err(|e| CliError { code: 2, source: e.into(), hint: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_errors_to_exit_codes() {
        let config = || CoreError::config("x.toml:3", "unknown field");
        assert_eq!(CliError::from(config()).code, 2);
        assert_eq!(CliError::from(TrainerError::Core(config())).code, 2);
        assert_eq!(CliError::from(TrainerError::UnknownMethod("sp".into())).code, 2);
        let io = CoreError::io("a")(std::io::Error::other("disk full"));
        assert_eq!(CliError::from(io).code, 1);
        let io = CoreError::io("a")(std::io::Error::other("no such folder"));
        assert_eq!(Err::<(), _>(io).prepared().unwrap_err().code, 2);
    }
}

//! How a command ends: well, with findings, or with a problem that has an exit code and a hint.

use stillhouse_core::Error as CoreError;
use stillhouse_trainer::Error as TrainerError;

/// How a command ended that did what it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All is well.
    Well,
    /// Something was found, or a cell failed.
    Findings,
    /// It was stopped by the person and can go on.
    Interrupted,
}

/// What a command returns.
pub(crate) type Outcome = Result<Ended, Problem>;

/// An error with its exit code and what to do about it.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) code: u8,
    pub(crate) error: anyhow::Error,
    pub(crate) hint: Option<String>,
}

impl Problem {
    /// Usage or configuration, exit code 2.
    pub(crate) fn usage(message: impl std::fmt::Display) -> Self {
        Self { code: 2, error: anyhow::anyhow!("{message}"), hint: None }
    }

    /// A failure, exit code 1.
    pub(crate) fn failed(message: impl std::fmt::Display) -> Self {
        Self { code: 1, error: anyhow::anyhow!("{message}"), hint: None }
    }

    /// Adds what to do.
    pub(crate) fn hint(mut self, hint: impl std::fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }
}

impl<E: Into<anyhow::Error>> From<E> for Problem {
    /// Errors of configurations and of parts that do not fit are the person's to mend (2); all
    /// others are failures (1).
    fn from(error: E) -> Self {
        let error = error.into();
        let usage = error.chain().any(|cause| match cause.downcast_ref::<TrainerError>() {
            Some(TrainerError::Core(core)) => is_usage(core),
            Some(e) => matches!(
                e,
                TrainerError::TwoCeWeights { .. } | TrainerError::NotBuilt(_) | TrainerError::Folder { .. }
            ),
            None => cause.downcast_ref::<CoreError>().is_some_and(is_usage),
        });
        Self { code: if usage { 2 } else { 1 }, error, hint: None }
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

/// A dataset that is not there, or not laid out as it should be; broken files are failures.
fn is_layout(error: &stillhouse_datasets::Error) -> bool {
    use stillhouse_datasets::Error as E;
    matches!(
        error,
        E::MissingDataset { .. }
            | E::MissingClass { .. }
            | E::EmptyClass { .. }
            | E::UnexpectedFile { .. }
            | E::ListLine { .. }
            | E::MissingFile { .. }
            | E::WrongLabel { .. }
            | E::Layout { .. }
            | E::Access { .. }
            | E::Setting { .. }
    )
}

/// Turns the errors of preparations, whatever they are, into usage errors (exit code 2).
pub(crate) trait Prepared<T> {
    /// As it says.
    fn prepared(self) -> Result<T, Problem>;
}

impl<T, E: Into<anyhow::Error>> Prepared<T> for Result<T, E> {
    fn prepared(self) -> Result<T, Problem> {
        self.map_err(|e| Problem { code: 2, error: e.into(), hint: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        let config = || CoreError::config("x.toml:3", "unknown field");
        assert_eq!(Problem::from(config()).code, 2);
        assert_eq!(Problem::from(TrainerError::Core(config())).code, 2);
        assert_eq!(Problem::from(TrainerError::NotBuilt("sp".into())).code, 2);
        let io = CoreError::io("a")(std::io::Error::other("disk full"));
        assert_eq!(Problem::from(io).code, 1);
        let io = CoreError::io("a")(std::io::Error::other("no such folder"));
        assert_eq!(Err::<(), _>(io).prepared().unwrap_err().code, 2);
    }
}

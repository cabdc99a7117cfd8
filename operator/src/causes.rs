//! Errors with their causes in one line, for conditions and logs.

use std::error::Error;

/// `error` and its causes, joined by colons.
///
/// It ends at the API client's own errors: their messages repeat their sources.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut current = error;
    while !current.is::<kube::Error>()
        && let Some(cause) = current.source()
    {
        text = match cause.downcast_ref() {
            Some(kube::Error::Api(status)) => format!("{text}: {}", status.message),
            _ => format!("{text}: {cause}"),
        };
        current = cause;
    }
    text
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::apply::ApplyError;

    #[test]
    fn an_answer_of_the_api_server_is_told_once() {
        let status = Status::failure("name is too long", "Invalid").with_code(422);
        let error = ApplyError::ApplyChild {
            kind: "Job".to_owned(),
            name: "x".to_owned(),
            source: kube::Error::Api(status.boxed()),
        };
        assert_eq!(chain(&error), "cannot apply Job x: name is too long");
    }
}

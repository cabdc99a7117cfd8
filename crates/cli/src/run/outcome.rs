//! What the end of a guest means.

use anyhow::{Result, bail};
use assay_supervisor::supervise::SuperviseError;

use super::say;
use super::verdict::Decision;

/// What the end of the guest means for the person who started it.
pub(super) fn outcome(
    ended: Result<u8, SuperviseError>,
    decision: Option<Decision>,
    interrupted: bool,
    until_attested: bool,
) -> Result<u8> {
    match (ended, decision) {
        (Ok(_) | Err(SuperviseError::Stopped(_)), Some(Decision::Attested)) => {
            say("done", "the guest was attested and is stopped");
            Ok(0)
        }
        (_, Some(Decision::Refused(why))) => bail!(why),
        (_, None) if interrupted && until_attested => {
            bail!("interrupted before the guest was attested")
        }
        (Ok(_) | Err(SuperviseError::Stopped(_)), None) if interrupted => {
            say("done", "the guest is stopped");
            Ok(0)
        }
        (Ok(code), None) => {
            say("done", format_args!("the workload ended with {code}"));
            Ok(code)
        }
        (Err(error), _) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use assay_supervisor::Phase;

    use super::*;

    #[test]
    fn the_exit_status_is_what_the_person_asked_about() {
        let stopped = || Err(SuperviseError::Stopped(Phase::Running));
        let attested = || Some(Decision::Attested);
        let refused = || Some(Decision::Refused("why".to_owned()));
        let rows: [(_, _, bool, bool, Result<u8, &str>); 9] = [
            (stopped(), attested(), false, true, Ok(0)),
            (Ok(143), attested(), false, true, Ok(0)),
            (stopped(), refused(), false, true, Err("why")),
            (Ok(0), refused(), false, true, Err("why")),
            (stopped(), None, true, false, Ok(0)),
            (Ok(3), None, true, false, Ok(0)),
            (Ok(3), None, true, true, Err("interrupted before")),
            (Ok(3), None, false, false, Ok(3)),
            (
                Err(SuperviseError::GuestFailed("no root disk".to_owned())),
                None,
                true,
                false,
                Err("no root disk"),
            ),
        ];
        for (number, (ended, decision, interrupted, until_attested, expected)) in
            rows.into_iter().enumerate()
        {
            let got = outcome(ended, decision, interrupted, until_attested);
            match (got, expected) {
                (Ok(code), Ok(expected)) => assert_eq!(code, expected, "row {number}"),
                (Err(error), Err(words)) => {
                    assert!(error.to_string().contains(words), "row {number}: {error}");
                }
                (got, _) => panic!("row {number}: {got:?}"),
            }
        }
    }
}

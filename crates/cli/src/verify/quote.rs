//! TD quotes: what a person may type, and the appraisal.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, ensure};
use assay_attest::tdx::{
    ExpectedRegister, QuoteEvidence, TdBinding, TdReferenceValue, TdReferenceValues, TdxPolicy,
    appraise_quote,
};
use assay_attest::{CheckName, ReferenceState, Verdict};
use assay_tee::Sha384Digest;
use assay_tee::td_quote::TdQuote;
use jiff::Timestamp;

use super::{Args, Expected, Hex, read};

/// What is compared with a quote alone.
#[derive(Debug, clap::Args)]
pub(super) struct QuoteArgs {
    /// TD quote of version 4 or 5, with --collateral
    #[arg(
        long,
        value_name = "FILE",
        requires_all = ["mr_config_id", "rtmr"],
        conflicts_with_all = [
            "report", "record", "certs", "vek", "ask", "ark", "crl", "host_data",
            "simulated_root",
        ]
    )]
    pub(super) quote: Option<PathBuf>,
    /// MRCONFIGID as 96 hex digits, or `any`
    #[arg(long, value_name = "HEX", requires = "quote")]
    mr_config_id: Option<Expected<Hex<48>>>,
    /// MROWNER as 96 hex digits, or `any` [default: zeros]
    #[arg(long, value_name = "HEX", requires = "quote")]
    mr_owner: Option<Expected<Hex<48>>>,
    /// MROWNERCONFIG as 96 hex digits, or `any` [default: zeros]
    #[arg(long, value_name = "HEX", requires = "quote")]
    mr_owner_config: Option<Expected<Hex<48>>>,
    /// RTMR to accept, as in 1=sha384:<hex> or 3=any; each of 0 to 3, or `any` for
    /// all of them
    #[arg(long, value_name = "N=DIGEST", requires = "quote")]
    rtmr: Vec<Rtmr>,
}

/// What one or all of the RTMRs must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rtmr {
    Any,
    One(usize, ExpectedRegister),
}

impl FromStr for Rtmr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "any" {
            return Ok(Self::Any);
        }
        let expected = "N=sha384:<hex>, N=any or any, with N from 0 to 3";
        let (index, value) = text.split_once('=').ok_or(expected)?;
        let index = ["0", "1", "2", "3"].iter().position(|name| *name == index);
        let value = match value {
            "any" => ExpectedRegister::Any,
            digest => {
                let digest: Sha384Digest = digest.parse().map_err(|error| format!("{error}"))?;
                ExpectedRegister::Value(digest)
            }
        };
        Ok(Self::One(index.ok_or(expected)?, value))
    }
}

/// The rule for each RTMR: every one must be named.
fn rtmrs(rules: &[Rtmr]) -> anyhow::Result<[ExpectedRegister; 4]> {
    let mut named = [None; 4];
    for rule in rules {
        match rule {
            Rtmr::Any => {
                ensure!(rules.len() == 1, "--rtmr any says all that --rtmr can say");
                named = [Some(ExpectedRegister::Any); 4];
            }
            Rtmr::One(index, value) => {
                let slot = named.get_mut(*index).context("there are four RTMRs")?;
                ensure!(slot.is_none(), "--rtmr {index} is given twice");
                *slot = Some(*value);
            }
        }
    }
    let missing = named.iter().position(Option::is_none);
    if let Some(index) = missing {
        anyhow::bail!("RTMR{index} is not named; give --rtmr {index}=<digest> or {index}=any");
    }
    Ok(named.map(|rule| rule.unwrap_or(ExpectedRegister::Any)))
}

/// The verdict about a quote, and the checks that were waived.
pub(super) fn appraise(args: &Args, path: &Path) -> anyhow::Result<(Verdict, Vec<CheckName>)> {
    let collateral = args.collateral.as_deref().map(read).transpose()?;
    let evidence = QuoteEvidence {
        quote: read(path)?,
        collateral,
    };
    // What is waived is compared with itself; a quote that cannot be read fails.
    let claimed = TdQuote::parse(&evidence.quote)
        .map(|quote| *quote.report)
        .ok();
    let mut waived = Vec::new();
    let mut waive = |name| waived.push(name);
    let zeros = Expected::Value(Hex([0; 48]));
    let options = &args.quote;
    let config = options.mr_config_id.as_ref().unwrap_or(&zeros);
    let [config_id, owner, owner_config] = [
        (
            CheckName::ConfigId,
            config,
            claimed.map(|claimed| claimed.mr_config_id),
        ),
        (
            CheckName::Owner,
            options.mr_owner.as_ref().unwrap_or(&zeros),
            claimed.map(|claimed| claimed.mr_owner),
        ),
        (
            CheckName::Owner,
            options.mr_owner_config.as_ref().unwrap_or(&zeros),
            claimed.map(|claimed| claimed.mr_owner_config),
        ),
    ]
    .map(|(name, expected, claimed)| match expected {
        Expected::Value(Hex(bytes)) => *bytes,
        Expected::Any => {
            waive(name);
            claimed.unwrap_or([0; 48])
        }
    });
    let report_data = match args
        .report_data
        .as_ref()
        .context("--report-data is needed")?
    {
        Expected::Value(Hex(bytes)) => *bytes,
        Expected::Any => {
            waive(CheckName::ReportData);
            claimed.map_or([0; 64], |claimed| claimed.report_data)
        }
    };
    let rtmrs = rtmrs(&options.rtmr)?;
    let reference_value = |expected: &Expected<assay_tee::LaunchDigest>| TdReferenceValue {
        id: "--measurement".to_owned(),
        mr_td: match expected {
            Expected::Any => ExpectedRegister::Any,
            Expected::Value(digest) => {
                ExpectedRegister::Value(Sha384Digest::new(*digest.as_bytes()))
            }
        },
        rtmrs,
        state: ReferenceState::Accepted,
    };
    let reference_values =
        TdReferenceValues(args.measurement.iter().map(reference_value).collect());
    let binding = TdBinding {
        report_data,
        mr_config_id: config_id,
        mr_owner: owner,
        mr_owner_config: owner_config,
    };
    let now = args.now.unwrap_or_else(Timestamp::now);
    let policy = policy(args.policy.as_deref())?;
    let verdict = appraise_quote(&evidence, &reference_values, &policy, &binding, now);
    Ok((verdict, waived))
}

fn policy(path: Option<&Path>) -> anyhow::Result<TdxPolicy> {
    let Some(path) = path else {
        return Ok(TdxPolicy::default());
    };
    let text = String::from_utf8(read(path)?)
        .with_context(|| format!("{} is not text", path.display()))?;
    serde_saphyr::from_str(&text)
        .with_context(|| format!("{} is not a policy for TDX", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rtmr_is_named_once() {
        let parse = |text: &[&str]| -> anyhow::Result<_> {
            let rules: Result<Vec<Rtmr>, _> = text.iter().map(|text| text.parse()).collect();
            rtmrs(&rules.map_err(anyhow::Error::msg)?)
        };
        let digest = format!("1=sha384:{}", "ab".repeat(48));
        let all = parse(&["0=any", &digest, "2=any", "3=any"]).unwrap();
        assert_eq!(
            all[1],
            ExpectedRegister::Value(Sha384Digest::new([0xab; 48]))
        );
        assert_eq!(all[0], ExpectedRegister::Any);
        assert_eq!(parse(&["any"]).unwrap(), [ExpectedRegister::Any; 4]);
        for (rules, why) in [
            (&["0=any", "1=any", "2=any"][..], "RTMR3 is not named"),
            (&["0=any", "0=any"], "given twice"),
            (&["any", "0=any"], "--rtmr any"),
            (&["4=any"], "N from 0 to 3"),
            (&["00=any"], "N from 0 to 3"),
            (&["0"], "N from 0 to 3"),
            (&["0=sha384:ab"], ""),
        ] {
            let error = parse(rules).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}

//! `assay policy diff`: what one document accepts and another does not.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use assay_reference::{
    Accepts, Difference, Image, Policy, Side, Statement, Validity, differences, image_of, policy_of,
};

use super::input::{self, Document};
use crate::stdout;

/// Exit status where the documents differ, and where they cannot be compared: as
/// diff has them.
const DIFFER: u8 = 1;
const FAILED: u8 = 2;

/// What a person may type.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 equal, 1 different, 2 an input cannot be read")]
pub(super) struct Args {
    /// Bundle, statement, or MeasuredImages and AttestationPolicy in one file
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The same, to compare with
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Print the differences as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
pub(super) fn run(args: &Args) -> ExitCode {
    match compare(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(DIFFER),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn compare(args: &Args) -> Result<bool> {
    ensure!(
        args.a != Path::new("-") || args.b != Path::new("-"),
        "A and B cannot both be standard input; give one as a file"
    );
    let (a, b) = (Values::read(&args.a)?, Values::read(&args.b)?);
    let found = differences(a.accepts(), b.accepts())?;
    if args.json {
        stdout::write_line(serde_json::to_string_pretty(&found)?)?;
    } else {
        for difference in &found {
            stdout::write_line(line(difference))?;
        }
    }
    Ok(found.is_empty())
}

/// What a document says.
struct Values {
    images: Vec<Image>,
    policy: Option<Policy>,
    validity: Option<Validity>,
}

impl Values {
    fn read(path: &Path) -> Result<Self> {
        let named = || path.display().to_string();
        match input::document(path)? {
            Document::Bundle(bundle) => {
                eprintln!(
                    "note: the signature of {} is not verified here; use `assay policy import`",
                    path.display()
                );
                let statement =
                    Statement::parse(bundle.unverified_payload()).with_context(named)?;
                Ok(Self::of(statement))
            }
            Document::Statement(statement) => Ok(Self::of(*statement)),
            Document::Objects(objects) => {
                ensure!(
                    objects.policies.len() <= 1,
                    "{} has {} AttestationPolicies; leave one",
                    path.display(),
                    objects.policies.len()
                );
                let images = objects.images.iter().map(image_of);
                Ok(Self {
                    images: images.collect::<Result<_, _>>().with_context(named)?,
                    policy: objects
                        .policies
                        .first()
                        .map(policy_of)
                        .transpose()
                        .with_context(named)?,
                    validity: None,
                })
            }
            Document::Manifest(_) => bail!(
                "{} is a manifest.json, which has no launch digests yet; compare what `assay \
                 policy export --unsigned` makes of it",
                path.display()
            ),
        }
    }

    fn of(statement: Statement) -> Self {
        Self {
            images: statement.predicate.images,
            policy: Some(statement.predicate.policy),
            validity: Some(statement.predicate.validity),
        }
    }

    fn accepts(&self) -> Accepts<'_> {
        Accepts {
            images: &self.images,
            policy: self.policy.as_ref(),
            validity: self.validity,
        }
    }
}

fn line(difference: &Difference) -> String {
    match difference {
        Difference::LaunchDigest {
            accepted_by,
            tee,
            digest,
            shapes,
        } => {
            let side = match accepted_by {
                Side::A => "only A accepts",
                Side::B => "only B accepts",
            };
            format!("{side} {tee:?} {digest} ({})", shapes.join("; "))
        }
        Difference::Value { field, a, b } => {
            let text = |value: &Option<serde_json::Value>| {
                value
                    .as_ref()
                    .map_or_else(|| "nothing".to_owned(), ToString::to_string)
            };
            format!("{field}: A has {}, B has {}", text(a), text(b))
        }
    }
}

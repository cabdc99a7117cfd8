//! `assay policy import`: from a bundle that one believes to objects that one
//! can apply.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use assay_reference::{PublicKey, Statement, to_measured_image, to_policy, verify};
use jiff::Timestamp;

use super::input::{self, Document};
use crate::stdout;

/// What a person may type.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Bundle; further ones hold further signatures of the same statement
    #[arg(value_name = "FILE", required = true)]
    bundles: Vec<PathBuf>,
    #[command(flatten)]
    trust: Trust,
    /// Print the verified statement instead of objects
    #[arg(long)]
    statement: bool,
}

/// Whom to believe, and when.
#[derive(Debug, clap::Args)]
pub(super) struct Trust {
    /// Public key to believe, PEM or DER; may be repeated
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    /// How many of the keys must have signed
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    threshold: usize,
    /// Time at which the statement must be valid, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME")]
    now: Option<Timestamp>,
}

impl Trust {
    /// The statement of bundles that are believed.
    pub(super) fn verify(&self, bundles: &[PathBuf]) -> Result<Statement> {
        let keys: Vec<PublicKey> = self
            .keys
            .iter()
            .map(|path| input::public_key("--key", path))
            .collect::<Result<_>>()?;
        let mut read = Vec::new();
        for path in bundles {
            match input::document(path)? {
                Document::Bundle(bundle) => read.push(bundle),
                _ => anyhow::bail!(
                    "{} is no bundle, and nobody vouches for anything else; give what `assay \
                     policy export --key` wrote",
                    path.display()
                ),
            }
        }
        let now = self.now.unwrap_or_else(Timestamp::now);
        verify(&read, &keys, self.threshold, now).context("the bundle is not believed")
    }
}

/// Runs the subcommand.
pub(super) fn run(args: &Args) -> Result<()> {
    let statement = args.trust.verify(&args.bundles)?;
    if args.statement {
        let bytes = statement.encode()?;
        stdout::write(String::from_utf8(bytes).context("the statement is no text")?)?;
        return Ok(());
    }
    let mut documents = Vec::new();
    for image in &statement.predicate.images {
        let object = to_measured_image(image)?;
        documents.push(serde_saphyr::to_string(&object).context("write a MeasuredImage")?);
    }
    let policy = to_policy(&statement.predicate.policy);
    documents.push(serde_saphyr::to_string(&policy).context("write the AttestationPolicy")?);
    stdout::write(documents.join("---\n"))?;
    eprintln!(
        "note: valid until {}; the policy releases nothing until you add spec.release",
        statement.predicate.validity.not_after
    );
    Ok(())
}

//! `assay policy diff`: what one document accepts and another does not.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use assay_crds::v1alpha1::attestation_policy::Product;
use assay_reference::derived::{self, DerivedValues};
use assay_reference::{
    Accepts, Difference, Image, Policy, Statement, Validity, corim, differences, image_of,
    policy_of, rvps,
};
use jiff::Timestamp;

use super::export::{note_left_out, product};
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
    /// Bundle, statement, or MeasuredImages and AttestationPolicy in one file; or
    /// reference values of Trustee, or a CoRIM
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The same, to compare with
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Print the differences as JSON
    #[arg(long)]
    json: bool,
    /// Processor product, where a policy with several is compared with reference values
    /// or a CoRIM
    #[arg(long, value_parser = product)]
    product: Option<Product>,
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
    let (a, b) = (Side::read(&args.a)?, Side::read(&args.b)?);
    let found = match (a, b) {
        (Side::Source(a), Side::Source(b)) => differences(a.accepts(), b.accepts())?,
        (Side::Derived(form, a), Side::Derived(other, b)) => {
            ensure!(
                form == other,
                "A is {form} and B {other}: each names things in its own way; compare either with \
                 the statement"
            );
            derived::differences(&a, &b)
        }
        (Side::Source(a), Side::Derived(form, b)) => {
            let (a, b) = a.derive(form, b, args.product)?;
            derived::differences(&a, &b)
        }
        (Side::Derived(form, a), Side::Source(b)) => {
            let (b, a) = b.derive(form, a, args.product)?;
            derived::differences(&a, &b)
        }
    };
    if args.json {
        stdout::write_line(serde_json::to_string_pretty(&found)?)?;
    } else {
        for difference in &found {
            stdout::write_line(line(difference))?;
        }
    }
    Ok(found.is_empty())
}

/// What is compared.
enum Side {
    /// What others are derived from.
    Source(Box<Values>),
    /// What was derived.
    Derived(Form, DerivedValues),
}

/// What a document for another verifier is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Rvps,
    Corim,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rvps => "reference values of Trustee",
            Self::Corim => "a CoRIM",
        })
    }
}

/// What a document says.
struct Values {
    images: Vec<Image>,
    policy: Option<Policy>,
    validity: Option<Validity>,
}

impl Side {
    fn source(values: Values) -> Self {
        Self::Source(Box::new(values))
    }

    fn read(path: &Path) -> Result<Self> {
        let named = || path.display().to_string();
        let unverified = |what: &str| {
            eprintln!(
                "note: the signature of {} is not verified here{what}",
                path.display()
            );
        };
        match input::document(path)? {
            Document::Bundle(bundle) => {
                unverified("; use `assay policy import`");
                let statement =
                    Statement::parse(bundle.unverified_payload()).with_context(named)?;
                Ok(Self::source(Values::of(statement)))
            }
            Document::Statement(statement) => Ok(Self::source(Values::of(*statement))),
            Document::Rvps(values) => Ok(Self::Derived(Form::Rvps, values)),
            Document::Corim(values) => {
                unverified("");
                Ok(Self::Derived(Form::Corim, values))
            }
            Document::Objects(objects) => {
                ensure!(
                    objects.policies.len() <= 1,
                    "{} has {} AttestationPolicies; leave one",
                    path.display(),
                    objects.policies.len()
                );
                let images = objects.images.iter().map(image_of);
                Ok(Self::source(Values {
                    images: images.collect::<Result<_, _>>().with_context(named)?,
                    policy: objects
                        .policies
                        .first()
                        .map(policy_of)
                        .transpose()
                        .with_context(named)?,
                    validity: None,
                }))
            }
            Document::Manifest(_) => bail!(
                "{} is a manifest.json, which has no launch digests yet; compare what `assay \
                 policy export --unsigned` makes of it",
                path.display()
            ),
        }
    }
}

impl Values {
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

    /// What `form` would say of this, and `other`, without what only one can have.
    fn derive(
        self,
        form: Form,
        other: DerivedValues,
        product: Option<Product>,
    ) -> Result<(DerivedValues, DerivedValues)> {
        let policy = self.policy.with_context(|| {
            format!("there is no AttestationPolicy to compare {form} with; add one to the file")
        })?;
        // Objects have no end.
        let any = Validity {
            not_before: Timestamp::UNIX_EPOCH,
            not_after: Timestamp::UNIX_EPOCH,
        };
        let validity = self.validity.unwrap_or(any);
        let statement = Statement::build(validity, self.images, policy)?;
        let derived = match form {
            Form::Rvps => {
                let derived = rvps::derive(&statement, product)?;
                note_left_out(&derived.left_out);
                DerivedValues::of_rvps(&derived.values)?
            }
            Form::Corim => {
                let derived = corim::derive(&statement, product)?;
                note_left_out(&derived.left_out);
                DerivedValues::of_corim(&derived.values)?
            }
        };
        Ok(if self.validity.is_some() && other.has_validity() {
            (derived, other)
        } else {
            (derived.without_validity(), other.without_validity())
        })
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
                assay_reference::Side::A => "only A accepts",
                assay_reference::Side::B => "only B accepts",
            };
            match shapes.as_slice() {
                [] => format!("{side} {tee:?} {digest}"),
                shapes => format!("{side} {tee:?} {digest} ({})", shapes.join("; ")),
            }
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

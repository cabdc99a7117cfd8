//! The assay command.
//!
//! Every subcommand lives in a file of its own: `Args` is what a person may
//! type, `run` reads files, calls one pure function and prints. Results go to
//! standard output, everything else to standard error, so that scripts can use
//! the former as it is.

mod audit;
mod build;
mod collateral;
mod explain;
mod guest_policy;
mod id_block;
mod igvm;
mod inputs;
mod inspect;
mod kit;
mod measure;
mod objects;
mod output_file;
mod pcr_signature;
mod pcrs;
mod policy;
mod progress;
mod pull;
mod registry;
mod run;
mod scratch;
mod sign_uki;
mod stdout;
mod verify;
mod verify_image;

use std::process::ExitCode;

use anyhow::Result;
use clap::{ArgMatches, Args, FromArgMatches};
use dlmalloc::GlobalDlmalloc;

/// The allocator of musl maps a page here and a page there, a system call each.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

/// What may follow `assay`.
static SUBCOMMANDS: [Subcommand; 16] = [
    Subcommand::new::<audit::Args>("audit", "Verify the audit log of a broker", |matches| {
        report(audit::run(&parse(matches)))
    }),
    Subcommand::new::<build::Args>("build", "Build a measured image", |matches| {
        build::run(&parse(matches))
    }),
    Subcommand::new::<collateral::Args>(
        "collateral",
        "Fetch and show what AMD publishes about processors",
        |matches| report(collateral::run(&parse(matches))),
    ),
    Subcommand::new::<explain::Args>(
        "explain",
        "Name the cause of a launch digest that was not expected",
        |matches| explain::run(&parse(matches)),
    ),
    Subcommand::new::<id_block::Args>(
        "id-block",
        "Sign what may be launched, and verify such signatures",
        |matches| report(id_block::run(&parse(matches))),
    ),
    Subcommand::new::<igvm::Args>(
        "igvm",
        "Make IGVM files, which hold everything that a guest starts from",
        |matches| report(igvm::run(&parse(matches))),
    ),
    Subcommand::new::<inspect::Args>(
        "inspect",
        "Show what a firmware, UKI, IGVM file, report or certificate says",
        |matches| report(inspect::run(&parse(matches))),
    ),
    Subcommand::new::<kit::Args>(
        "kit",
        "Pack, check and push boot kits: kernel, modules, stub and firmware",
        |matches| kit::run(&parse(matches)),
    ),
    Subcommand::new::<measure::Args>(
        "measure",
        "Compute the launch digest of a guest from its files",
        |matches| report(measure::run(&parse(matches))),
    ),
    Subcommand::new::<pcrs::Args>(
        "pcrs",
        "Predict the TPM PCRs that the boot of a UKI leaves",
        |matches| report(pcrs::run(&parse(matches))),
    ),
    Subcommand::new::<policy::Args>(
        "policy",
        "Sign, verify and compare reference values outside the cluster",
        |matches| policy::run(&parse(matches)),
    ),
    Subcommand::new::<pull::Args>(
        "pull",
        "Fetch the files of an artifact, verified",
        |matches| report(pull::run(&parse(matches))),
    ),
    Subcommand::new::<run::Args>(
        "run",
        "Boot a guest on this machine, without Kubernetes, and attest it",
        |matches| run::run(parse(matches)),
    ),
    Subcommand::new::<sign_uki::Args>(
        "sign-uki",
        "Sign unified kernel images for Secure Boot",
        |matches| report(sign_uki::run(&parse(matches))),
    ),
    Subcommand::new::<verify::Args>("verify", "Appraise evidence again, from files", |matches| {
        verify::run(&parse(matches))
    }),
    Subcommand::new::<verify_image::Args>(
        "verify-image",
        "Build an artifact again, and say whether every byte is the same",
        |matches| verify_image::run(&parse(matches)),
    ),
];

/// What a subcommand is called, takes and does.
struct Subcommand {
    name: &'static str,
    about: &'static str,
    /// Adds its arguments to an empty command.
    describe: fn(clap::Command) -> clap::Command,
    run: fn(&ArgMatches) -> ExitCode,
}

impl Subcommand {
    const fn new<A: Args>(
        name: &'static str,
        about: &'static str,
        run: fn(&ArgMatches) -> ExitCode,
    ) -> Self {
        Self {
            name,
            about,
            describe: describe::<A>,
            run,
        }
    }

    /// The arguments are described when the subcommand is called: to describe
    /// those of all takes longer than many a launch digest.
    fn to_command(&self) -> clap::Command {
        clap::Command::new(self.name)
            .about(self.about)
            .defer(self.describe)
    }
}

/// Adds the arguments `A`, whose own description is not the subcommand's.
fn describe<A: Args>(command: clap::Command) -> clap::Command {
    let about = command.get_about().cloned().unwrap_or_default();
    A::augment_args(command).about(about).long_about(None)
}

/// The arguments `A` among what was parsed.
fn parse<A: FromArgMatches>(matches: &ArgMatches) -> A {
    A::from_arg_matches(matches).unwrap_or_else(|error| error.exit())
}

fn report(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command() -> clap::Command {
    clap::Command::new("assay")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Measured images and attested guests, from the command line")
        .propagate_version(true)
        .arg_required_else_help(true)
        .subcommand_required(true)
        .subcommands(SUBCOMMANDS.iter().map(Subcommand::to_command))
}

fn main() -> ExitCode {
    let matches = command().get_matches();
    let called = matches.subcommand().and_then(|(name, matches)| {
        let known = SUBCOMMANDS.iter().find(|known| known.name == name)?;
        Some((known.run)(matches))
    });
    called.unwrap_or(ExitCode::FAILURE)
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_subcommand_describes_itself_soundly() {
        super::command().debug_assert();
    }
}

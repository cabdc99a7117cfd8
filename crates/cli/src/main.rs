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

use clap::{Parser, Subcommand};

/// Measured images and attested guests, from the command line.
#[derive(Debug, Parser)]
#[command(
    name = "assay",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Verify the audit log of a broker
    Audit(audit::Args),
    /// Build a measured image
    Build(build::Args),
    /// Fetch and show what AMD publishes about processors
    Collateral(collateral::Args),
    /// Name the cause of a launch digest that was not expected
    Explain(Box<explain::Args>),
    /// Sign what may be launched, and verify such signatures
    IdBlock(id_block::Args),
    /// Make IGVM files, which hold everything that a guest starts from
    Igvm(igvm::Args),
    /// Show what a firmware, UKI, IGVM file, report or certificate says
    Inspect(inspect::Args),
    /// Pack, check and push boot kits: kernel, modules, stub and firmware
    Kit(kit::Args),
    /// Compute the launch digest of a guest from its files
    Measure(measure::Args),
    /// Predict the TPM PCRs that the boot of a UKI leaves
    Pcrs(pcrs::Args),
    /// Sign, verify and compare reference values outside the cluster
    Policy(policy::Args),
    /// Fetch the files of an artifact, verified
    Pull(pull::Args),
    /// Boot a guest on this machine, without Kubernetes, and attest it
    Run(Box<run::Args>),
    /// Sign unified kernel images for Secure Boot
    SignUki(sign_uki::Args),
    /// Appraise evidence again, from files
    Verify(verify::Args),
    /// Build an artifact again, and say whether every byte is the same
    VerifyImage(verify_image::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Audit(args) => audit::run(&args),
        Command::Build(args) => return build::run(&args),
        Command::Collateral(args) => collateral::run(&args),
        Command::Explain(args) => return explain::run(&args),
        Command::IdBlock(args) => id_block::run(&args),
        Command::Igvm(args) => igvm::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Kit(args) => return kit::run(&args),
        Command::Measure(args) => measure::run(&args),
        Command::Pcrs(args) => pcrs::run(&args),
        Command::Policy(args) => return policy::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::Run(args) => return run::run(*args),
        Command::SignUki(args) => sign_uki::run(&args),
        Command::Verify(args) => return verify::run(&args),
        Command::VerifyImage(args) => return verify_image::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! `assay policy`: reference values outside the cluster.
//!
//! `export` makes one statement of a cluster's objects and signs it, `import`
//! verifies it and gives objects back, `diff` says who accepts what. With a key
//! in a hardware security module `export --unsigned` writes the bytes to sign and
//! `assemble` takes the signature.

mod diff;
mod export;
mod import;
mod input;

use std::process::ExitCode;

/// What a person may type.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a signed statement of reference values, or derive RVPS and CoRIM
    Export(Box<export::Args>),
    /// Put a signature that was made elsewhere to a statement
    Assemble(export::AssembleArgs),
    /// Verify bundles and print their MeasuredImages and AttestationPolicy
    Import(import::Args),
    /// Compare what two documents accept
    Diff(diff::Args),
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> ExitCode {
    let result = match &args.command {
        Command::Export(args) => export::run(args),
        Command::Assemble(args) => export::assemble(args),
        Command::Import(args) => import::run(args),
        Command::Diff(args) => return diff::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! `assay audit`: the log of what a broker released and refused.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use assay_protocol::audit::verify_log;

use crate::stdout::write_line;

/// What a person may type.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Verify that no line was changed, removed or reordered, or name the first
    ///
    /// Prints the number of lines and the digest of the last one. That the end
    /// was not cut off is shown by the digest alone: compare it with one that
    /// was kept elsewhere.
    Verify {
        /// The log
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let Command::Verify { file } = &args.command;
    let path = file.display();
    let log = File::open(file).with_context(|| format!("cannot read {path}"))?;
    let chain = verify_log(BufReader::new(log)).with_context(|| format!("{path} is not whole"))?;
    write_line(format_args!("{} lines, head {}", chain.lines, chain.head))?;
    Ok(())
}

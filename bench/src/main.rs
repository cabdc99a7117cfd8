//! Benchmarks: peers and us in turn, in one run on one machine, as ratios.
//!
//! `cargo xtask bench` builds what is compared and says where it is. A peer that
//! is not there is named and left out; nothing is compared with figures of
//! another day or machine.

mod broker;
mod explain;
mod hashing;
mod image_build;
mod launch_digest;
mod matrix;
mod peers;
mod process;
mod rate;
mod table;
mod verification;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

use crate::peers::Peers;

#[derive(Debug, Parser)]
#[command(name = "assay-bench", about = "Peers and us, side by side")]
struct Arguments {
    #[command(subcommand)]
    internal: Option<Internal>,
    /// What to run [default: everything]
    #[arg(value_enum)]
    benchmarks: Vec<Benchmark>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Benchmark {
    /// `assay measure` against sev-snp-measure, as processes
    LaunchDigest,
    /// Many launch shapes
    Matrix,
    /// Digests in memory against the machine's limit
    Hashing,
    /// `assay explain` where nothing explains the digest
    Explain,
    /// Appraisals against one signature, the sev crate and go-sev-guest
    Verification,
    /// Guests of one replica of the broker
    Broker,
    /// `assay build` against a pipeline of other programs
    ImageBuild,
}

/// What the program runs of itself.
#[derive(Debug, Subcommand)]
enum Internal {
    /// Run a command and print its wall time and peak memory.
    #[command(hide = true)]
    Observe {
        /// The program.
        program: PathBuf,
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Some(Internal::Observe { program, arguments }) = &arguments.internal {
        return process::observe_here(program, arguments);
    }
    let peers = Peers::from_variables()?;
    let all = Benchmark::value_variants();
    let wanted = if arguments.benchmarks.is_empty() {
        all
    } else {
        &arguments.benchmarks
    };
    for benchmark in wanted {
        match benchmark {
            Benchmark::LaunchDigest => launch_digest::run(&peers)?,
            Benchmark::Matrix => matrix::run(&peers)?,
            Benchmark::Hashing => hashing::run(&peers)?,
            Benchmark::Explain => explain::run(&peers)?,
            Benchmark::Verification => verification::run(&peers)?,
            Benchmark::Broker => broker::run()?,
            Benchmark::ImageBuild => image_build::run(&peers)?,
        }
    }
    Ok(())
}

//! Developer commands: `cargo xtask <command>`.

mod bench;
mod cargo;
mod charts;
mod check_deps;
mod crdgen;
mod debian;
mod demo;
mod destination;
mod environment;
mod images;
mod layers;
mod oracles;
mod programs;
mod qemu;
mod samples;
mod test;
mod tree;

use anyhow::{Context, Result, bail};
use assay_cluster::{Cache, Cluster};
use clap::{Parser, Subcommand};
use destination::Destination;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Assay")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A real Kubernetes cluster on this machine.
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Build our own programs as they are shipped; prints the directory with them.
    Build,
    /// Fetch or build every program that the other commands need; prints where
    /// tests find those that give second opinions.
    Programs,
    /// The container images.
    #[command(subcommand)]
    Images(ImagesCommand),
    /// Show the main job on a real cluster.
    Demo,
    /// Run everything that CI runs.
    Test {
        /// Leave out what needs a cluster.
        #[arg(long)]
        no_cluster: bool,
    },
    /// Compare with peers, side by side in one run.
    Bench {
        /// What to compare [default: everything].
        benchmarks: Vec<String>,
    },
    /// Write crds/yaml from the Rust types.
    Crdgen,
    /// Lint the charts, and check that they render charts/golden.
    Charts {
        /// Write charts/golden anew instead.
        #[arg(long)]
        bless: bool,
    },
    /// Check that crates depend on each other only as ARCHITECTURE.md draws it.
    CheckDeps,
}

#[derive(Subcommand)]
enum ClusterCommand {
    /// Start it, or find it running; prints what `env` prints.
    Up,
    /// Stop it and leave nothing behind.
    Down,
    /// Show its components.
    Status,
    /// Print the path of its KUBECONFIG.
    Kubeconfig,
    /// Print lines for a shell: KUBECONFIG, and a PATH with kubectl and helm.
    Env,
}

#[derive(Subcommand)]
enum ImagesCommand {
    /// Build, pack and push all images; prints their references by digest as JSON.
    Push {
        /// Registry, with a path if need be, as `registry.example/me` [default: the local
        /// cluster's].
        #[arg(long)]
        registry: Option<String>,
        /// The registry speaks plain HTTP.
        #[arg(long)]
        plain_http: bool,
        /// Only what is packed from Debian's packages: boot kit, web server, busybox.
        #[arg(long)]
        inputs: bool,
    },
    /// Build and pack all images into a directory as an OCI image layout, for
    /// where no registry is in reach; prints their digests as JSON.
    Save {
        /// The directory; it is made.
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Cluster(ClusterCommand::Up) => {
            let cluster = Cluster::open()?;
            print!("{}", cluster.up()?.exports(cluster.cache()));
            Ok(())
        }
        Command::Cluster(ClusterCommand::Down) => Cluster::open()?.down(),
        Command::Cluster(ClusterCommand::Status) => {
            let status = Cluster::open()?
                .status()
                .context("no cluster here; start one with `cargo xtask cluster up`")?;
            print!("{status}");
            if !status.is_healthy() {
                bail!("the cluster is not healthy");
            }
            Ok(())
        }
        Command::Cluster(ClusterCommand::Kubeconfig) => {
            println!("{}", Cluster::open()?.kubeconfig().path.display());
            Ok(())
        }
        Command::Cluster(ClusterCommand::Env) => {
            let cluster = Cluster::open()?;
            print!("{}", cluster.kubeconfig().exports(cluster.cache()));
            Ok(())
        }
        Command::Demo => {
            let checkout = programs::workspace_root();
            let cluster = assay_cluster::connect()?;
            let environment = environment::prepare(&checkout, &cluster, false)?;
            demo::run(&environment, &cluster)
        }
        Command::Test { no_cluster } => test::run(&programs::workspace_root(), !no_cluster),
        Command::Bench { benchmarks } => bench::run(&programs::workspace_root(), &benchmarks),
        Command::Crdgen => crdgen::write(&programs::workspace_root()),
        Command::Charts { bless } => {
            let (checkout, cache) = (programs::workspace_root(), Cache::open()?);
            if bless {
                charts::bless(&checkout, &cache)
            } else {
                charts::check(&checkout, &cache)
            }
        }
        Command::Build => {
            println!("{}", programs::build()?.display());
            Ok(())
        }
        Command::Programs => {
            let cache = Cache::open()?;
            cache.everything()?;
            for (name, value) in oracles::variables(&cache)? {
                println!("export {name}={value}");
            }
            Ok(())
        }
        Command::Images(ImagesCommand::Push {
            registry,
            plain_http,
            inputs,
        }) => {
            let mut registry = match registry {
                Some(registry) if plain_http => Destination::plain_http(&registry)?,
                Some(registry) => Destination::https(&registry)?,
                None => Destination::plain_http(&Cluster::open()?.kubeconfig().registry)?,
            };
            let cache = Cache::open()?;
            if inputs {
                print_json(&images::store_inputs(&cache, &mut registry)?)
            } else {
                print_json(&images::store_all(&cache, &mut registry)?)
            }
        }
        Command::Images(ImagesCommand::Save { directory }) => {
            let mut layout = Destination::directory(&directory)?;
            print_json(&images::store_all(&Cache::open()?, &mut layout)?)
        }
        Command::CheckDeps => check_deps::run(),
    }
}

fn print_json(references: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string_pretty(references).context("encode the references")?;
    println!("{json}");
    Ok(())
}

//! Everything that CI runs, in the order in which it fails fastest.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use assay_cluster::progress::say;

/// A named part of the run.
struct Stage {
    name: &'static str,
    elapsed: std::time::Duration,
}

/// Runs stages and remembers how long each took.
#[derive(Default)]
pub struct Stages {
    done: Vec<Stage>,
}

impl Stages {
    /// Runs one stage.
    pub fn run<T>(&mut self, name: &'static str, stage: impl FnOnce() -> Result<T>) -> Result<T> {
        say(format!("stage: {name}"));
        let start = Instant::now();
        let result = stage().with_context(|| format!("stage `{name}`"))?;
        self.done.push(Stage { name, elapsed: start.elapsed() });
        Ok(result)
    }

    /// Prints how long each stage took.
    pub fn print(&self) {
        for stage in &self.done {
            say(format!("{:>7.1} s  {}", stage.elapsed.as_secs_f64(), stage.name));
        }
    }
}

/// The stages that need no cluster.
pub fn without_cluster(
    checkout: &Path,
    stages: &mut Stages,
    oracles: &[(&str, String)],
) -> Result<()> {
    stages.run("format", || cargo(checkout, &["fmt", "--all", "--check"], &[]))?;
    stages.run("dependency edges", || crate::check_deps::run(checkout))?;
    stages.run("lints", || {
        cargo(
            checkout,
            &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
            &[],
        )
    })?;
    stages.run("generated files", || crate::crdgen::check(checkout))?;
    stages.run("unit, property and golden tests", || {
        cargo(checkout, &["test", "--workspace", "--exclude", "assay-e2e"], oracles)
    })
}

/// Runs cargo in the checkout.
pub fn cargo(checkout: &Path, args: &[&str], variables: &[(&str, String)]) -> Result<()> {
    let status = Command::new(env!("CARGO"))
        .current_dir(checkout)
        .args(args)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .status()
        .context("run cargo")?;
    ensure!(status.success(), "cargo {} failed ({status})", args.join(" "));
    Ok(())
}

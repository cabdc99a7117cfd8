//! Everything that CI runs, in the order in which it fails fastest.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use assay_cluster::progress::say;
use assay_cluster::{Cache, Cluster};
use assay_e2e::install;

use crate::cargo::cargo;
use crate::programs;

/// A named part of the run.
struct Stage {
    name: &'static str,
    elapsed: std::time::Duration,
}

/// Runs stages and remembers how long each took.
#[derive(Default)]
pub(crate) struct Stages {
    done: Vec<Stage>,
}

impl Stages {
    /// Runs one stage.
    pub(crate) fn run<T>(
        &mut self,
        name: &'static str,
        stage: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        say(format!("stage: {name}"));
        let start = Instant::now();
        let result = stage().with_context(|| format!("stage `{name}`"))?;
        self.done.push(Stage {
            name,
            elapsed: start.elapsed(),
        });
        Ok(result)
    }

    /// Prints how long each stage took.
    pub(crate) fn print(&self) {
        for stage in &self.done {
            say(format!(
                "{:>7.1} s  {}",
                stage.elapsed.as_secs_f64(),
                stage.name
            ));
        }
    }
}

/// Runs every stage. Without `cluster`, those that need none.
pub(crate) fn run(checkout: &Path, cluster: bool) -> Result<()> {
    let mut stages = Stages::default();
    let result = run_stages(checkout, cluster, &mut stages);
    stages.print();
    result
}

fn run_stages(checkout: &Path, cluster: bool, stages: &mut Stages) -> Result<()> {
    stages.run("format", || {
        cargo(checkout, &["fmt", "--all", "--check"], &[])
    })?;
    stages.run("dependency edges", crate::check_deps::run)?;
    stages.run("lints", || {
        let lint = [
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ];
        cargo(checkout, &lint, &[])
    })?;
    stages.run("fuzz targets", || {
        // A workspace of its own, which would have a target directory of its own.
        let target = [("CARGO_TARGET_DIR", text(&programs::target_directory())?)];
        let check = ["check", "--quiet", "--locked"];
        cargo(&checkout.join("fuzz"), &check, &target)
    })?;
    stages.run("generated files", || crate::crdgen::check(checkout))?;
    let cache = Cache::open()?;
    stages.run("charts", || crate::charts::check(checkout, &cache))?;
    let oracles = stages.run("oracles", || crate::oracles::variables(&cache))?;
    stages.run("unit, property and golden tests", || {
        cargo(
            checkout,
            &["test", "--workspace", "--exclude", "assay-e2e"],
            &oracles,
        )
    })?;
    if !cluster {
        return Ok(());
    }
    let kubeconfig = stages.run("cluster up", assay_cluster::connect)?;
    let environment = stages.run("images", || {
        crate::environment::prepare(checkout, &kubeconfig, true)
    })?;
    let description = crate::environment::write(&environment)?;
    stages.run("end-to-end tests", || {
        let variables = [(
            assay_e2e::environment::ENVIRONMENT_VARIABLE,
            text(&description)?,
        )];
        // One at a time: they share a cluster.
        let tests = [
            "test",
            "--package",
            "assay-e2e",
            "--",
            "--test-threads=1",
            "--nocapture",
        ];
        cargo(checkout, &tests, &variables)
    })?;
    if kubeconfig.ours {
        stages.run("cluster down", || Cluster::open()?.down())
    } else {
        stages.run("uninstall", || install::uninstall(&environment))
    }
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path is not UTF-8")?.to_owned())
}

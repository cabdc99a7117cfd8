//! Brings up what the demo and the end-to-end tests run against.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use assay_cluster::layout::Layout;
use assay_cluster::programs::REGISTRY;
use assay_cluster::{Cache, Kubeconfig};
use assay_e2e::Environment;
use assay_e2e::environment::{Images, Samples};

use crate::destination::Destination;
use crate::{images, programs, samples};

/// Builds and pushes the images, finds the programs and describes them all.
/// With `oracles`, fetches other people's tools as well.
pub(crate) fn prepare(checkout: &Path, cluster: &Kubeconfig, oracles: bool) -> Result<Environment> {
    let cache = Cache::open()?;
    let mut registry = Destination::plain_http(&cluster.registry)?;
    let pushed = images::store_all(&cache, &mut registry)?;
    // The demo does without them.
    let samples = oracles
        .then(|| samples::store_all(&cache, &mut registry))
        .transpose()?;
    let scratch = checkout.join("dist");
    fs::create_dir_all(&scratch).context("create dist/")?;
    let layout = Layout::open()?;
    Ok(Environment {
        checkout: checkout.to_owned(),
        scratch,
        kubeconfig: cluster.path.clone(),
        logs: (cluster.path == layout.kubeconfig()).then(|| layout.path("logs")),
        kubectl: cache.kubectl()?,
        helm: cache.helm()?,
        assay: programs::directory().join("assay"),
        registry: cluster.registry.clone(),
        registry_program: cluster
            .ours
            .then(|| cache.program(&REGISTRY, "registry"))
            .transpose()?,
        images: Images {
            assay: pushed.programs.assay,
            launcher: pushed.programs.launcher,
            builder: pushed.programs.builder,
            boot_kit: pushed.inputs.boot_kit,
            web: pushed.inputs.quickstart_web,
            busybox: pushed.inputs.busybox,
        },
        samples: samples.map(|images| Samples {
            static_server: images.static_server,
            interpreter: images.interpreter,
            distroless: images.distroless,
        }),
        sev_snp_measure: oracles.then(|| cache.sev_snp_measure()).transpose()?,
        go_sev_guest_check: oracles.then(|| cache.go_sev_guest_check()).transpose()?,
    })
}

/// Writes the description for the tests and returns its path.
pub(crate) fn write(environment: &Environment) -> Result<PathBuf> {
    let path = environment.scratch.join("environment.json");
    let json = serde_json::to_vec_pretty(environment).context("encode the environment")?;
    fs::write(&path, json).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

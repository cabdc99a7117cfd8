//! Installing Assay by helm, as its users do.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{Environment, private};

/// Namespace that the scenarios install into.
pub const NAMESPACE: &str = "assay-system";

/// Installs or upgrades both charts and waits until everything is Ready.
///
/// # Errors
/// When helm fails; the state of the installation is printed first.
pub fn install(environment: &Environment) -> Result<()> {
    helm(
        environment,
        &[
            "upgrade",
            "--install",
            "assay-crds",
            "charts/assay-crds",
            "--create-namespace",
        ],
    )?;
    let images = &environment.images;
    helm(
        environment,
        &[
            "upgrade",
            "--install",
            "assay",
            "charts/assay",
            "--wait",
            "--timeout=5m",
            "--set",
            &format!("images.assay={}", images.assay),
            "--set",
            &format!("images.launcher={}", images.launcher),
            "--set",
            &format!("images.builder={}", images.builder),
            "--set",
            "simulation.enabled=true",
            "--set",
            &format!(
                "registry.plainHTTP={{{},{}}}",
                environment.registry,
                private::host(environment)
            ),
        ],
    )
    .map(drop)
    .inspect_err(|_| environment.kubectl().print_state(NAMESPACE))
}

/// Takes both charts away. The kinds stay, as the chart keeps them, and so does
/// the namespace.
///
/// # Errors
/// When helm fails.
pub fn uninstall(environment: &Environment) -> Result<()> {
    for release in ["assay", "assay-crds"] {
        helm(environment, &["uninstall", release, "--wait"])?;
    }
    Ok(())
}

/// What a template of the chart `assay` renders from a file of values, both relative
/// to the checkout.
///
/// # Errors
/// When helm fails.
pub fn render(environment: &Environment, template: &str, values: &str) -> Result<String> {
    let args = ["template", "assay", "charts/assay", "--values", values];
    let manifests = helm(
        environment,
        &[&args[..], &["--show-only", template]].concat(),
    )?;
    String::from_utf8(manifests).context("helm printed something that is not UTF-8")
}

fn helm(environment: &Environment, args: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(&environment.helm)
        .current_dir(&environment.checkout)
        .arg("--kubeconfig")
        .arg(&environment.kubeconfig)
        .args(args)
        .args(["--namespace", NAMESPACE])
        .output()
        .with_context(|| format!("run {}", environment.helm.display()))?;
    if !output.status.success() {
        bail!(
            "helm {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output.stdout)
}

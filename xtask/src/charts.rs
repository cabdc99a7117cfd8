//! Lints the charts, and compares what they render with `charts/golden`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use assay_cluster::{Cache, command};

/// Where the goldens are, seen from the checkout.
const DIRECTORY: &str = "charts/golden";
/// Each is a file of values, `<case>.values.yaml`, and what the chart `assay`
/// renders from it, `<case>.yaml`.
const CASES: [&str; 4] = ["defaults", "simulation", "every-value", "external-verifier"];
/// The oldest release that the charts allow, so that a newer helm renders the
/// same.
const KUBERNETES: &str = "1.33.0";

/// Values that must be refused, and what the refusal must name.
const REFUSED: [(&str, &str); 15] = [
    (
        "images.assay=",
        "images.assay is \"\": name the image by digest",
    ),
    (
        "images.builder=registry.example/assay-builder:v1",
        "images.builder is \"registry.example/assay-builder:v1\": name",
    ),
    (
        "images.launcher=registry.example/assay-launcher@sha256:0",
        "images.launcher is",
    ),
    ("images.tag=v1", "images"),
    ("broker.replicas=0", "replicas"),
    ("registry.pullSecrets[0].name=x", "namespace"),
    ("broker.auditLog.claim=A/b", "claim"),
    ("broker.secrets.files.directory=/x", "files"),
    ("collateral.url=kds.example", "collateral"),
    ("denyList.chips={abc}", "denyList"),
    ("verifier.external.url=http://broker.example", "url"),
    (
        "verifier.external.addresses={broker.example:1}",
        "addresses",
    ),
    (
        "verifier.external.url=https://broker.example",
        "verifier.external.ca is not PEM of certificates",
    ),
    (
        "verifier.external.ca=-----BEGIN CERTIFICATE-----",
        "verifier.external.url is missing beside ca",
    ),
    (
        "verifier.external.url=https://b,verifier.external.ca=-----BEGIN CERTIFICATE-----,\
         collateral.url=https://kds.example",
        "collateral is for a broker in the cluster",
    ),
];

/// Writes the goldens anew.
pub(crate) fn bless(checkout: &Path, cache: &Cache) -> Result<()> {
    let helm = Helm::new(checkout, cache)?;
    for case in CASES {
        let path = checkout.join(DIRECTORY).join(format!("{case}.yaml"));
        fs::write(&path, helm.render(case)?)
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Fails if helm finds fault with a chart, or if a chart renders something else
/// than what is committed.
pub(crate) fn check(checkout: &Path, cache: &Cache) -> Result<()> {
    let helm = Helm::new(checkout, cache)?;
    helm.run(&["lint", "--strict", "charts/assay-crds"])?;
    for case in CASES {
        helm.run(&[
            "lint",
            "--strict",
            "charts/assay",
            "--values",
            &values(case),
        ])?;
        let golden = format!("{DIRECTORY}/{case}.yaml");
        let committed =
            fs::read(checkout.join(&golden)).with_context(|| format!("read {golden}"))?;
        ensure!(
            helm.render(case)? == committed,
            "charts/assay does not render {golden} any more: run `cargo xtask charts --bless` \
             and look at the difference"
        );
    }
    for (value, sentence) in REFUSED {
        let Err(refusal) = helm.template(&[
            "charts/assay",
            "--values",
            &values("defaults"),
            "--set",
            value,
        ]) else {
            bail!("charts/assay accepts {value}");
        };
        ensure!(
            refusal.to_string().contains(sentence),
            "charts/assay refuses {value} without saying {sentence:?}: {refusal}"
        );
    }
    every_kind_is_packed(&helm)
}

/// The chart `assay-crds` has every definition, and keeps it unless told not to.
fn every_kind_is_packed(helm: &Helm<'_>) -> Result<()> {
    let kinds = fs::read_dir(helm.checkout.join("crds/yaml"))
        .context("read crds/yaml")?
        .count();
    for (keep, kept) in [("keep=true", kinds), ("keep=false", 0)] {
        let rendered = helm.template(&["charts/assay-crds", "--set", keep])?;
        let rendered = String::from_utf8_lossy(&rendered);
        let lines = |text: &str| rendered.lines().filter(|line| line.trim() == text).count();
        ensure!(
            lines("kind: CustomResourceDefinition") == kinds
                && lines("helm.sh/resource-policy: keep") == kept,
            "charts/assay-crds does not render the {kinds} definitions of crds/yaml with {keep}"
        );
    }
    Ok(())
}

fn values(case: &str) -> String {
    format!("{DIRECTORY}/{case}.values.yaml")
}

/// Helm in the checkout, without a cluster.
struct Helm<'a> {
    program: PathBuf,
    checkout: &'a Path,
}

impl<'a> Helm<'a> {
    fn new(checkout: &'a Path, cache: &Cache) -> Result<Self> {
        let program = cache.helm()?;
        Ok(Self { program, checkout })
    }

    fn run(&self, args: &[&str]) -> Result<Vec<u8>> {
        let mut helm = Command::new(&self.program);
        command::output(helm.current_dir(self.checkout).args(args))
    }

    fn template(&self, args: &[&str]) -> Result<Vec<u8>> {
        let fixed = [
            "template",
            "assay",
            "--namespace=assay-system",
            "--kube-version",
            KUBERNETES,
        ];
        self.run(&[&fixed, args].concat())
    }

    fn render(&self, case: &str) -> Result<Vec<u8>> {
        self.template(&["charts/assay", "--values", &values(case)])
    }
}

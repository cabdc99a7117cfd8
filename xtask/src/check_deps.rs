//! The dependency direction of the workspace, as a test: which of our crates
//! may depend on which, and what pure crates may not name at all.

use anyhow::{Context, Result, bail};
use assay_cluster::command;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What a crate may depend on among ours, in `[dependencies]`.
///
/// Adding an edge here is a decision about the architecture: change
/// ARCHITECTURE.md in the same commit.
const ALLOWED: &[(&str, &[&str])] = &[
    // Pure: bytes and values in, values out.
    ("assay-tee", &[]),
    ("assay-measure", &["assay-tee"]),
    ("assay-image", &["assay-measure", "assay-tee"]),
    ("assay-attest", &["assay-tee"]),
    ("assay-protocol", &["assay-tee"]),
    ("assay-crds", &["assay-tee"]),
    ("assay-psp-sim", &["assay-tee"]),
    // A statement says what the objects say, in their own types.
    ("assay-reference", &["assay-crds", "assay-tee"]),
    // What objects come to: recipes, rows of digests, launch specifications.
    (
        "assay-workload",
        &[
            "assay-crds",
            "assay-image",
            "assay-launcher",
            "assay-measure",
            // Makes the development PKI.
            "assay-psp-sim",
            "assay-tee",
        ],
    ),
    ("assay-launcher", &["assay-image", "assay-tee"]),
    // Shells. The supervisor writes IGVM files, drives the simulated processor and
    // measures what it launches.
    (
        "assay-supervisor",
        &[
            "assay-image",
            "assay-launcher",
            "assay-measure",
            "assay-psp-sim",
            "assay-tee",
        ],
    ),
    ("assay-registry", &["assay-image", "assay-tee"]),
    (
        "assay-broker",
        &[
            "assay-attest",
            "assay-crds",
            // Explains launch digests; what is accepted are published rows.
            "assay-measure",
            "assay-protocol",
            "assay-tee",
        ],
    ),
    ("assay-agent", &["assay-protocol", "assay-tee"]),
    (
        "assay-operator",
        &[
            "assay-attest",
            "assay-crds",
            "assay-image",
            "assay-launcher",
            "assay-measure",
            "assay-psp-sim",
            "assay-registry",
            "assay-tee",
            "assay-workload",
        ],
    ),
    ("assay-node", &["assay-crds", "assay-tee"]),
    (
        "assay-cli",
        &[
            "assay-attest",
            "assay-broker",
            "assay-crds",
            "assay-image",
            "assay-launcher",
            "assay-measure",
            "assay-protocol",
            "assay-reference",
            "assay-registry",
            "assay-supervisor",
            "assay-tee",
            "assay-workload",
        ],
    ),
    // Runs a cluster for anybody and knows nothing of the product.
    ("assay-cluster", &[]),
];

/// Development packages: they may use anything, and nothing shipped uses them.
const DEVELOPMENT: &[&str] = &[
    "assay-bench",
    "assay-e2e",
    "assay-libigvm",
    "assay-testkit",
    "xtask",
];

/// Further edges that tests may use.
const ALLOWED_IN_TESTS: &[(&str, &str)] = &[
    ("assay-attest", "assay-psp-sim"),
    ("assay-broker", "assay-psp-sim"),
    ("assay-cli", "assay-psp-sim"),
    ("assay-protocol", "assay-attest"),
    ("assay-psp-sim", "assay-attest"),
];

/// Crates that do no I/O, and what they may therefore not depend on.
const PURE: &[&str] = &[
    "assay-tee",
    "assay-measure",
    "assay-image",
    "assay-attest",
    "assay-protocol",
    "assay-reference",
    "assay-launcher",
    "assay-workload",
];
const IMPURE: &[&str] = &[
    "tokio",
    "kube",
    "kube-client",
    "kube-runtime",
    "reqwest",
    "hyper",
];

/// Pure libraries whose text is searched as well: the standard library is no
/// dependency, and these handle names of files and addresses.
const PURE_SOURCES: &[&str] = &["crates/launcher/src", "crates/workload/src"];
/// What the text of a pure library may not name.
const IMPURE_PATHS: &[&str] = &[
    "tokio::",
    "kube::",
    "reqwest::",
    "axum::",
    "std::fs",
    "std::net",
    "std::process",
];

/// Fails when the workspace has an edge that is not listed.
pub(crate) fn run() -> Result<()> {
    let mut cargo = command::with_args(
        "cargo",
        [
            "metadata",
            "--format-version=1",
            "--no-deps",
            "--locked",
            "--offline",
        ],
    );
    let metadata = command::output(&mut cargo).context("read the workspace")?;
    let metadata: Metadata =
        serde_json::from_slice(&metadata).context("read what `cargo metadata` printed")?;
    let mut violations = violations(&metadata);
    for source in PURE_SOURCES {
        violations.extend(impure_lines(&metadata.workspace_root.join(source))?);
    }
    if !violations.is_empty() {
        bail!(
            "dependencies against the architecture:\n  {}",
            violations.join("\n  ")
        );
    }
    println!(
        "{} packages depend on each other as drawn",
        metadata.packages.len()
    );
    Ok(())
}

/// The part of `cargo metadata` that is needed.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or none for an ordinary dependency.
    kind: Option<String>,
}

fn violations(metadata: &Metadata) -> Vec<String> {
    let ours: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut found = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        if DEVELOPMENT.contains(&name) {
            continue;
        }
        let Some(may) = allowed.get(name) else {
            found.push(format!(
                "{name} is not in the list of xtask/src/check_deps.rs"
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let to = dependency.name.as_str();
            let in_tests = dependency.kind.as_deref() == Some("dev");
            let listed = may.contains(&to)
                || (in_tests && (to == "assay-testkit" || ALLOWED_IN_TESTS.contains(&(name, to))));
            if ours.contains(to) && !listed {
                let kind = if in_tests { "its tests " } else { "" };
                found.push(format!("{name}: {kind}may not depend on {to}"));
            }
            if PURE.contains(&name) && IMPURE.contains(&to) && !in_tests {
                found.push(format!("{name} is pure and may not depend on {to}"));
            }
        }
    }
    found
}

/// Lines of a library's sources that name something impure. Binaries and tests
/// are left out.
fn impure_lines(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry
            .with_context(|| format!("list {}", dir.display()))?
            .path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if path.is_dir() {
            if name != "bin" && name != "tests" {
                found.extend(impure_lines(&path)?);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && !matches!(name, "main.rs" | "tests.rs")
        {
            let text =
                fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (number, line) in (1..).zip(code.lines()) {
                if let Some(impure) = IMPURE_PATHS.iter().find(|impure| line.contains(**impure)) {
                    found.push(format!("{}:{number} names {impure}", path.display()));
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        Package {
            name: name.to_owned(),
            dependencies: dependencies
                .iter()
                .map(|(name, kind)| Dependency {
                    name: (*name).to_owned(),
                    kind: kind.map(str::to_owned),
                })
                .collect(),
        }
    }

    fn check(packages: Vec<Package>) -> Vec<String> {
        violations(&Metadata {
            packages,
            workspace_root: PathBuf::new(),
        })
    }

    #[test]
    fn drawn_edges_pass() {
        let found = check(vec![
            package("assay-tee", &[("serde", None)]),
            package("assay-psp-sim", &[("assay-tee", None)]),
            package(
                "assay-attest",
                &[("assay-tee", None), ("assay-psp-sim", Some("dev"))],
            ),
            package("xtask", &[("assay-attest", None), ("tokio", None)]),
        ]);
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn each_other_edge_fails() {
        let rows: [(&str, &str, Option<&str>); 6] = [
            ("assay-tee", "assay-measure", None),
            ("assay-measure", "tokio", None),
            ("assay-attest", "assay-psp-sim", None),
            ("assay-operator", "xtask", Some("dev")),
            ("assay-cluster", "assay-tee", None),
            ("assay-new", "serde", None),
        ];
        for (from, to, kind) in rows {
            let found = check(vec![package(from, &[(to, kind)]), package(to, &[])]);
            assert!(
                found.iter().any(|line| line.contains(from)),
                "{from} -> {to} must be refused, got {found:?}"
            );
        }
    }

    #[test]
    fn the_lists_have_no_duplicates() {
        let names: BTreeSet<_> = ALLOWED.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), ALLOWED.len());
    }
}

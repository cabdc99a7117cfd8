//! The cache of everything that is built or fetched once per machine:
//! `$XDG_CACHE_HOME/assay`, outside the checkout.
//!
//! # Guarantees
//! - An entry exists whole or not at all: it is made in a scratch directory
//!   and renamed.
//! - Its key holds the pinned version and a hash of the recipe, so a changed
//!   recipe is never served by an old build.
//! - Two processes do not make the same entry at the same time: the second
//!   waits and then finds it.

use crate::command;
use crate::packages;
use crate::pins;
use crate::programs::{self, Recipe, Source};
use crate::progress::say;
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// The cache's root directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's cache, by the XDG base directory specification.
    pub fn open() -> Result<Self> {
        let base = xdg_directory("XDG_CACHE_HOME", ".cache")?;
        Self::at(base.join("assay"))
    }

    /// A cache in a directory of the caller's choice.
    pub fn at(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;
        Ok(Self { root })
    }

    /// The cache's directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the entry `kind/key`, made by `make` in a scratch directory
    /// when it is not there yet. `what` is for the progress line.
    pub fn entry(
        &self,
        kind: &str,
        key: &str,
        what: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let entry = self.root.join(kind).join(key);
        if entry.is_dir() {
            return Ok(entry);
        }
        let _lock = self.lock(kind, key)?;
        if entry.is_dir() {
            return Ok(entry);
        }
        let scratch = self.root.join(kind).join(format!(".{key}.making"));
        remove_tree(&scratch)?;
        fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
        say(format!("making {what}"));
        let start = Instant::now();
        make(&scratch).with_context(|| format!("make {what}"))?;
        fs::rename(&scratch, &entry)
            .with_context(|| format!("move {} into the cache", scratch.display()))?;
        say(format!(
            "made {what} in {:.1} s",
            start.elapsed().as_secs_f64()
        ));
        Ok(entry)
    }

    /// The directory with the recipe's programs, building them if need be.
    pub fn programs(&self, recipe: &Recipe) -> Result<PathBuf> {
        let key = key(recipe);
        let names: Vec<_> = recipe.programs.iter().map(|(name, _)| *name).collect();
        let what = format!(
            "{} {} ({}: {})",
            recipe.name,
            recipe.version,
            recipe.purpose,
            names.join(", ")
        );
        let entry = self.entry("programs", &key, &what, |scratch| {
            let log = self.log(recipe.name)?;
            build_go(recipe, scratch, &log)
        })?;
        Ok(entry.join("bin"))
    }

    /// The same directory, if they are built.
    pub fn built(&self, recipe: &Recipe) -> Option<PathBuf> {
        let bin = self.root.join("programs").join(key(recipe)).join("bin");
        bin.is_dir().then_some(bin)
    }

    /// A single program of a recipe.
    pub fn program(&self, recipe: &Recipe, name: &str) -> Result<PathBuf> {
        let path = self.programs(recipe)?.join(name);
        if !path.is_file() {
            bail!("recipe {} has no program {name}", recipe.name);
        }
        Ok(path)
    }

    /// kubectl of the pinned version.
    pub fn kubectl(&self) -> Result<PathBuf> {
        self.program(&programs::KUBERNETES, "kubectl")
    }

    /// Helm of the pinned version.
    pub fn helm(&self) -> Result<PathBuf> {
        self.program(&programs::HELM, "helm")
    }

    /// go-sev-guest's `check`.
    pub fn go_sev_guest_check(&self) -> Result<PathBuf> {
        self.program(&programs::GO_SEV_GUEST, "check")
    }

    /// The `sev-snp-measure` command in a virtual environment of its own.
    pub fn sev_snp_measure(&self) -> Result<PathBuf> {
        let package = format!("sev-snp-measure=={}", pins::SEV_SNP_MEASURE);
        let venv = self.root.join("python").join(&package);
        let program = venv.join("bin/sev-snp-measure");
        // A virtual environment holds its own path and cannot be renamed, so a
        // marker that is written last says that it is whole.
        let complete = venv.join(".complete");
        if complete.is_file() {
            return Ok(program);
        }
        let _lock = self.lock("python", &package)?;
        if complete.is_file() {
            return Ok(program);
        }
        say(format!(
            "making {package} (second opinion on launch digests)"
        ));
        if command::find("python3").is_none() {
            packages::install(&["python3", "python3-venv"])?;
        } else if command::output(&mut command::with_args(
            "python3",
            ["-c", "import ensurepip"],
        ))
        .is_err()
        {
            packages::install(&["python3-venv"])?;
        }
        remove_tree(&venv)?;
        let log = self.log("python")?;
        let mut create = command::with_args("python3", ["-m", "venv"]);
        command::logged(create.arg(&venv), &log)?;
        let mut install = Command::new(venv.join("bin/pip"));
        install.args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            &package,
        ]);
        command::logged(&mut install, &log)
            .with_context(|| format!("install {package}; does pip reach its package index?"))?;
        fs::write(&complete, "").with_context(|| format!("write {}", complete.display()))?;
        Ok(program)
    }

    /// Makes everything that any command of the project needs.
    pub fn everything(&self) -> Result<()> {
        packages::ensure(packages::CLUSTER)?;
        packages::ensure(packages::PACKING)?;
        packages::ensure(packages::PEERS)?;
        for recipe in programs::CLUSTER.iter().chain(programs::TOOLS) {
            self.programs(recipe)?;
        }
        self.sev_snp_measure().map(drop)
    }

    /// A fresh log file for one build.
    pub fn log(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join("logs");
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let log = dir.join(format!("{name}.log"));
        fs::write(&log, "").with_context(|| format!("write {}", log.display()))?;
        Ok(log)
    }

    /// Waits for the lock of one entry. It is released when the file closes.
    fn lock(&self, kind: &str, key: &str) -> Result<File> {
        let dir = self.root.join(kind);
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let path = dir.join(format!(".{key}.lock"));
        let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            say(format!("another process is making {key}; waiting for it"));
            flock(&file, FlockOperation::LockExclusive)
                .with_context(|| format!("lock {}", path.display()))?;
        }
        Ok(file)
    }
}

/// A directory by the XDG base directory specification: the variable, or a
/// path below the home directory.
pub(crate) fn xdg_directory(variable: &str, below_home: &str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os(variable).map(PathBuf::from)
        && dir.is_absolute()
    {
        return Ok(dir);
    }
    let home =
        std::env::var_os("HOME").with_context(|| format!("neither {variable} nor HOME is set"))?;
    Ok(PathBuf::from(home).join(below_home))
}

/// Removes a directory tree, which may be absent. Go's module cache makes its
/// directories read-only, but never those that we let it write to.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// `<name>-<version>-<hash of the recipe>`.
pub(crate) fn key(recipe: &Recipe) -> String {
    let digest = Sha256::digest(format!("{LINKER_FLAGS:?} {recipe:?}").as_bytes());
    let hash: String = hex::encode(digest).chars().take(12).collect();
    format!("{}-{}-{hash}", recipe.name, recipe.version)
}

/// No symbol table and no DWARF: a third of the size.
const LINKER_FLAGS: &str = "-s -w";

fn build_go(recipe: &Recipe, scratch: &Path, log: &Path) -> Result<()> {
    if command::find("go").is_none() {
        bail!("Go is not installed; install it (https://go.dev/doc/install) and try again");
    }
    let module = scratch.join("module");
    let bin = scratch.join("bin");
    fs::create_dir_all(&module).context("create the module's directory")?;
    fs::create_dir_all(&bin).context("create the programs' directory")?;
    let mut flags = LINKER_FLAGS.to_owned();
    match recipe.source {
        Source::Module => {
            write(&module.join("go.mod"), "module assay.dev/programs\n")?;
            let wanted: Vec<String> = recipe
                .programs
                .iter()
                .map(|(_, package)| format!("{package}@v{}", recipe.version))
                .collect();
            let args: Vec<&str> = std::iter::once("get")
                .chain(wanted.iter().map(String::as_str))
                .collect();
            go(&module, log, &args)?;
        }
        Source::Kubernetes => {
            let (go_mod, go_sum) = kubernetes_module(recipe.version, &module, log)?;
            write(&module.join("go.mod"), &go_mod)?;
            write(&module.join("go.sum"), &go_sum)?;
            write(&module.join("tools.go"), &tools_go(recipe))?;
            go(&module, log, &["mod", "tidy"])?;
            flags.push_str(&kubernetes_version_flags(recipe.version));
        }
        Source::File { text } => {
            write(&module.join("go.mod"), "module assay.dev/programs\n")?;
            write(&module.join("main.go"), text)?;
        }
    }
    for (name, package) in recipe.programs {
        let start = Instant::now();
        let target = bin.join(name);
        let target = target.to_str().context("the cache's path is not UTF-8")?;
        go(
            &module,
            log,
            &[
                "build",
                "-trimpath",
                "-ldflags",
                &flags,
                "-o",
                target,
                package,
            ],
        )?;
        say(format!(
            "  built {name} in {:.0} s",
            start.elapsed().as_secs_f64()
        ));
    }
    Ok(())
}

fn go(module: &Path, log: &Path, args: &[&str]) -> Result<()> {
    let mut go = command::with_args("go", args);
    go.current_dir(module)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env("GOFLAGS", "-buildvcs=false -trimpath");
    command::logged(&mut go, log)
        .context("is Go recent enough, and does it reach its module proxy (`go env GOPROXY`)?")
}

/// A file that keeps the programs' packages in the module's requirements.
fn tools_go(recipe: &Recipe) -> String {
    let mut text = "//go:build tools\n\npackage tools\n\nimport (\n".to_owned();
    for (_, package) in recipe.programs {
        let _ = writeln!(text, "\t_ \"{package}\"");
    }
    text.push_str(")\n");
    text
}

/// go.mod and go.sum for a module that requires Kubernetes, from its own.
fn kubernetes_module(version: &str, module: &Path, log: &Path) -> Result<(String, String)> {
    let wanted = format!("k8s.io/kubernetes@v{version}");
    let mut download = command::with_args("go", ["mod", "download", "-json", &wanted]);
    download
        .current_dir(module)
        .env("GOWORK", "off")
        .env("GOFLAGS", "-buildvcs=false");
    let answer = command::output(&mut download).with_context(|| {
        format!(
            "download {wanted} through Go's module proxy (log {})",
            log.display()
        )
    })?;
    let answer: serde_json::Value =
        serde_json::from_slice(&answer).context("read what `go mod download` printed")?;
    let dir = answer["Dir"]
        .as_str()
        .context("`go mod download` named no directory")?;
    let read = |file: &str| {
        let path = Path::new(dir).join(file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    Ok((
        kubernetes_go_mod(&read("go.mod")?, version)?,
        read("go.sum")?,
    ))
}

/// Kubernetes replaces its staging modules by directories of its own
/// repository, which a module cannot carry: they become their releases, whose
/// versions differ from Kubernetes' only in the leading `v0.`.
fn kubernetes_go_mod(upstream: &str, version: &str) -> Result<String> {
    let staging_version = version
        .split_once('.')
        .map(|(_, rest)| format!("v0.{rest}"))
        .with_context(|| format!("Kubernetes version {version} has no dot"))?;
    let mut text = "module assay.dev/programs\n\n".to_owned();
    for line in upstream.lines() {
        if line.starts_with("go ") || line.starts_with("godebug ") {
            let _ = writeln!(text, "{line}\n");
        }
    }
    let _ = writeln!(text, "require k8s.io/kubernetes v{version}\n\nreplace (");
    for line in upstream.lines() {
        if let Some((staged, target)) = line.trim().split_once(" => ")
            && target.starts_with("./staging/")
        {
            let _ = writeln!(text, "\t{staged} => {staged} {staging_version}");
        }
    }
    text.push_str(")\n");
    Ok(text)
}

/// Without these, `kubectl version` and feature compatibility see v0.0.0.
fn kubernetes_version_flags(version: &str) -> String {
    let mut numbers = version.split('.');
    let (major, minor) = (numbers.next().unwrap_or("1"), numbers.next().unwrap_or("0"));
    let package = "k8s.io/component-base/version";
    format!(
        " -X {package}.gitVersion=v{version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    )
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_modules_become_releases() {
        let upstream = "module k8s.io/kubernetes\n\ngo 1.26.0\n\ngodebug default=go1.26\n\n\
            require (\n\tk8s.io/api v0.0.0\n)\n\nreplace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n)\n";
        let go_mod = kubernetes_go_mod(upstream, "1.36.3").unwrap();
        assert_eq!(
            go_mod,
            "module assay.dev/programs\n\ngo 1.26.0\n\ngodebug default=go1.26\n\n\
             require k8s.io/kubernetes v1.36.3\n\nreplace (\n\tk8s.io/api => k8s.io/api v0.36.3\n)\n"
        );
        assert!(kubernetes_go_mod(upstream, "1").is_err());
    }

    #[test]
    fn the_key_follows_version_and_recipe() {
        let newer = Recipe {
            version: "3.6.17",
            ..programs::ETCD
        };
        let other = Recipe {
            programs: &[("etcdctl", "x")],
            ..programs::ETCD
        };
        let keys = [key(&programs::ETCD), key(&newer), key(&other)];
        assert!(keys[0].starts_with("etcd-3.6.16-"));
        assert_ne!(keys[0], keys[1]);
        assert_ne!(keys[0], keys[2]);
    }

    #[test]
    fn an_entry_is_made_once_and_a_failed_one_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path()).unwrap();
        let failed = cache.entry("kind", "key", "it", |_| bail!("no"));
        assert!(failed.is_err());
        assert!(!dir.path().join("kind/key").exists());
        let made = cache
            .entry("kind", "key", "it", |scratch| {
                Ok(fs::write(scratch.join("f"), "content")?)
            })
            .unwrap();
        assert_eq!(fs::read_to_string(made.join("f")).unwrap(), "content");
        let again = cache
            .entry("kind", "key", "it", |_| bail!("made twice"))
            .unwrap();
        assert_eq!(made, again);
    }
}

//! Debian packages as trees, without installing them: apt with directories of
//! its own resolves and downloads, dpkg-deb unpacks. Needs no root and runs no
//! maintainer script.
//!
//! The mirror is the one that the machine itself uses, found at run time.

use crate::tree::Tree;
use anyhow::{Context, Result, bail};
use assay_cluster::{Cache, command, packages, progress::say};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Verifies the archive's signatures.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package at a version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// A suite of the archive, with apt's files for it in the cache.
pub(crate) struct Suite {
    name: &'static str,
    /// Kind of the archive's index (sources.list(5)): `deb` or `deb-src`.
    kind: &'static str,
    dir: PathBuf,
    debs: PathBuf,
}

impl Suite {
    /// Opens a suite, fetching its index when there is none yet.
    pub(crate) fn open(cache: &Cache, name: &'static str) -> Result<Self> {
        Self::open_index(cache, name, "deb", name.to_owned())
    }

    /// Opens a suite's source packages.
    pub(crate) fn open_sources(cache: &Cache, name: &'static str) -> Result<Self> {
        Self::open_index(cache, name, "deb-src", format!("{name}-source"))
    }

    fn open_index(
        cache: &Cache,
        name: &'static str,
        kind: &'static str,
        directory: String,
    ) -> Result<Self> {
        packages::ensure(packages::PACKING)?;
        let root = cache.root().join("debian");
        let suite = Self {
            name,
            kind,
            dir: root.join(directory),
            debs: root.join("packages"),
        };
        for dir in ["lists/partial", "archives/partial", "resolved"] {
            create(&suite.dir.join(dir))?;
        }
        create(&suite.debs)?;
        if !suite.dir.join("fetched").is_file() {
            suite.refresh()?;
        }
        Ok(suite)
    }

    /// Fetches the index again and forgets what was resolved by the old one.
    pub(crate) fn refresh(&self) -> Result<()> {
        if !Path::new(KEYRING).is_file() {
            bail!("{KEYRING} is missing; install the package debian-archive-keyring");
        }
        say(format!(
            "fetching the package index of Debian {}",
            self.name
        ));
        let mirror = find_mirror()?;
        let source = format!(
            "{} [signed-by={KEYRING}] {mirror} {} main\n",
            self.kind, self.name
        );
        let list = self.dir.join("sources.list");
        fs::write(&list, source).with_context(|| format!("write {}", list.display()))?;
        let mut update = self.apt("apt-get");
        command::output(update.args(["-qq", "update"]))
            .with_context(|| format!("fetch the index of Debian {}", self.name))?;
        for entry in fs::read_dir(self.dir.join("resolved")).context("list what was resolved")? {
            fs::remove_file(entry.context("list what was resolved")?.path())
                .context("forget what was resolved")?;
        }
        fs::write(self.dir.join("fetched"), "").context("note that the index was fetched")
    }

    /// The packages with everything they depend on, as of the fetched index.
    pub(crate) fn resolve(&self, wanted: &[&str]) -> Result<Vec<Package>> {
        let name = hex::encode(Sha256::digest(wanted.join(" ").as_bytes()));
        let file = self.dir.join("resolved").join(format!("{name}.json"));
        if let Some(known) = fs::read(&file)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        {
            return Ok(known);
        }
        let mut simulate = self.apt("apt-get");
        simulate
            .args(["install", "--simulate", "--no-install-recommends"])
            .args(wanted);
        let answer = command::output(&mut simulate)
            .with_context(|| format!("resolve {} in Debian {}", wanted.join(", "), self.name))?;
        let resolved = parse_simulation(&String::from_utf8_lossy(&answer));
        if resolved.is_empty() {
            bail!("apt resolves {} to nothing", wanted.join(", "));
        }
        let text = serde_json::to_vec_pretty(&resolved).context("encode what was resolved")?;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(resolved)
    }

    /// Downloads the files of a source package, each verified against the signed
    /// index, to a directory; returns the name of the one that describes the
    /// others (`.dsc`).
    pub(crate) fn download_source(&self, package: &Package, to: &Path) -> Result<String> {
        say(format!(
            "downloading the source of {} {}",
            package.name, package.version
        ));
        let mut download = self.apt("apt-get");
        download
            .args(["-qq", "source", "--download-only"])
            .arg(format!("{}={}", package.name, package.version));
        command::output(download.current_dir(to)).with_context(|| {
            format!(
                "Debian {} as the mirror has it does not give the source package {} {}; its index \
                 names {}",
                self.name,
                package.name,
                package.version,
                self.source_versions(&package.name).join(", ")
            )
        })?;
        let mut names = fs::read_dir(to)
            .with_context(|| format!("list {}", to.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names
            .find(|name| Path::new(name).extension().is_some_and(|e| e == "dsc"))
            .with_context(|| format!("the source package {} has no .dsc file", package.name))
    }

    /// The versions of a source package that the index names; none where apt
    /// cannot tell.
    fn source_versions(&self, name: &str) -> Vec<String> {
        let mut show = self.apt("apt-cache");
        let text = command::output(show.args(["showsrc", name])).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .lines()
            .filter_map(|line| Some(line.strip_prefix("Version: ")?.to_owned()))
            .collect()
    }

    /// Downloads and unpacks packages into one tree.
    pub(crate) fn unpack(&self, packages: &[Package]) -> Result<Tree> {
        let mut tree = Tree::default();
        for file in self.download(packages)? {
            let mut child = command::with_args("dpkg-deb", ["--fsys-tarfile"])
                .arg(&file)
                .stdout(Stdio::piped())
                .spawn()
                .context("run dpkg-deb")?;
            let output = child.stdout.take().context("dpkg-deb has no output")?;
            let unpacked = tree.extend_from_tar(std::io::BufReader::new(output));
            let status = child.wait().context("wait for dpkg-deb")?;
            unpacked.with_context(|| format!("unpack {}", file.display()))?;
            if !status.success() {
                bail!("dpkg-deb failed on {} ({status})", file.display());
            }
        }
        Ok(tree)
    }

    /// The packages' files, downloading those that are not there yet. apt
    /// verifies each against the signed index.
    fn download(&self, packages: &[Package]) -> Result<Vec<PathBuf>> {
        let arguments = |packages: &[&Package]| -> Vec<String> {
            packages
                .iter()
                .map(|p| format!("{}={}", p.name, p.version))
                .collect()
        };
        let all: Vec<&Package> = packages.iter().collect();
        let mut print = self.apt("apt-get");
        print
            .args(["--print-uris", "download"])
            .args(arguments(&all));
        let answer = command::output(&mut print).context("ask apt for file names")?;
        let answer = String::from_utf8_lossy(&answer);
        let names: BTreeSet<&str> = parse_uris(&answer).collect();
        if names.len() != packages.len() {
            bail!(
                "apt names {} files for {} packages",
                names.len(),
                packages.len()
            );
        }
        if names.iter().any(|name| !self.debs.join(name).is_file()) {
            say(format!(
                "downloading {} packages of Debian {}",
                packages.len(),
                self.name
            ));
            let mut download = self.apt("apt-get");
            download.args(["-qq", "download"]).args(arguments(&all));
            command::output(download.current_dir(&self.debs)).context("download packages")?;
        }
        Ok(names.into_iter().map(|name| self.debs.join(name)).collect())
    }

    /// apt with this suite only, and as if nothing were installed. The
    /// machine's own configuration stays in force, for proxies and the like.
    fn apt(&self, program: &str) -> Command {
        let mut apt = command::named(program);
        let paths = [
            ("Dir::Etc::sourcelist", self.dir.join("sources.list")),
            ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
            ("Dir::Etc::preferencesparts", PathBuf::from("/dev/null")),
            ("Dir::State::lists", self.dir.join("lists")),
            ("Dir::State::status", PathBuf::from("/dev/null")),
            ("Dir::Cache", self.dir.clone()),
        ];
        for (option, path) in paths {
            apt.arg("-o").arg(format!("{option}={}", path.display()));
        }
        apt.args([
            "-o",
            "APT::Architecture=amd64",
            "-o",
            "APT::Architectures=amd64",
        ]);
        apt.args(["-o", "APT::Sandbox::User=root"]);
        // Nobody reads descriptions and icons here.
        apt.args(["-o", "Acquire::Languages=none"]);
        apt.args([
            "-o",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
        ]);
        apt.env("LC_ALL", "C");
        apt
    }
}

fn create(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))
}

/// The Debian mirror that the machine's own apt uses.
fn find_mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var("ASSAY_DEBIAN_MIRROR") {
        return Ok(mirror);
    }
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        more.sort();
        files.extend(more);
    }
    files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .find_map(|text| mirror_in(&text))
        .context("apt's sources name no Debian mirror; set ASSAY_DEBIAN_MIRROR to the URI of one")
}

/// The first URI in either format of apt sources (sources.list(5)) that is a
/// whole Debian archive: those end in `/debian`, unlike security archives and
/// other vendors' repositories.
fn mirror_in(text: &str) -> Option<String> {
    text.lines()
        .filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"))
        .flat_map(str::split_ascii_whitespace)
        .filter(|word| word.contains("://"))
        .map(|uri| uri.trim_end_matches('/'))
        .find(|uri| uri.ends_with("/debian"))
        .map(str::to_owned)
}

/// `Inst name (version archive [arch])` lines of `apt-get --simulate`.
fn parse_simulation(text: &str) -> Vec<Package> {
    let mut packages: Vec<Package> = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
            let version = rest.strip_prefix('(')?.split(' ').next()?;
            Some(Package {
                name: name.to_owned(),
                version: version.to_owned(),
            })
        })
        .collect();
    packages.sort();
    packages
}

/// File names of `'uri' name size hash` lines of `apt-get --print-uris`.
fn parse_uris(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| line.starts_with('\''))
        .filter_map(|line| line.split(' ').nth(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_found_in_both_formats() {
        let rows = [
            (
                "deb http://mirror.example/debian trixie main\n",
                Some("http://mirror.example/debian"),
            ),
            (
                "deb [signed-by=/k.gpg] https://m.example/x/debian/ sid main",
                Some("https://m.example/x/debian"),
            ),
            (
                "Types: deb\nURIs: http://a.example/debian-security\n\nTypes: deb\n\
                 URIs: http://a.example/debian\nSuites: bookworm\n",
                Some("http://a.example/debian"),
            ),
            ("# deb http://mirror.example/debian trixie main", None),
            ("deb https://vendor.example/apt stable main", None),
        ];
        for (text, mirror) in rows {
            assert_eq!(mirror_in(text).as_deref(), mirror, "{text}");
        }
    }

    #[test]
    fn simulations_are_read() {
        let text = "NOTE: This is only a simulation!\n\
            Inst libc6 (2.41-12+deb13u4 Debian:13.7/stable [amd64])\n\
            Inst gcc-14-base (14.2.0-19 Debian:13.7/stable [amd64]) []\n\
            Conf libc6 (2.41-12+deb13u4 Debian:13.7/stable [amd64])\n";
        let names: Vec<_> = parse_simulation(text)
            .into_iter()
            .map(|p| format!("{}={}", p.name, p.version))
            .collect();
        assert_eq!(names, ["gcc-14-base=14.2.0-19", "libc6=2.41-12+deb13u4"]);
    }
}

//! Workloads of different kinds, for tests: one static program and nothing else, an
//! interpreter on a distribution's files with everything that archives can hold, and
//! the files that distribution-less images have.

use std::fs;

use crate::destination::Destination;
use crate::images::store;
use crate::layers::{self, accounts};
use crate::tree::Tree;
use anyhow::{Context as _, Result};
use assay_cluster::{Cache, programs};
use assay_image::oci::{Layer, RunConfig};
use assay_image::rope::Rope;
use serde::{Deserialize, Serialize};
use tar::{Builder, EntryType, Header};

/// The workload of the interpreter.
const SERVER_PY: &str = include_str!("../../e2e/images/server.py");
/// Names of one file: a static busybox has about as many.
const HARD_LINKS: u32 = 300;
/// Links that lead somewhere, and nowhere.
const SYMLINKS: u32 = 200;
/// The user of the image without a distribution.
const NONROOT: &str = "nonroot";

/// References by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SampleImages {
    /// One static program.
    pub(crate) static_server: String,
    /// Debian's Python.
    pub(crate) interpreter: String,
    /// A program, certificates, time zones and a user.
    pub(crate) distroless: String,
}

/// Packs and stores all of them.
pub(crate) fn store_all(cache: &Cache, to: &mut Destination) -> Result<SampleImages> {
    let server = cache.program(&programs::TREE_SERVER, "server")?;
    let server = fs::read(&server).with_context(|| format!("read {}", server.display()))?;
    let mut program = Tree::default();
    program.file("server", 0o755, server);
    let program = program.to_layer();
    let run = |entrypoint: &[&str], user: Option<&str>| RunConfig {
        user: user.map(str::to_owned),
        entrypoint: Some(entrypoint.iter().map(|&word| word.to_owned()).collect()),
        ..RunConfig::default()
    };
    let serve = ["/server"];
    let python = ["/usr/bin/python3", "-I", "/srv/server.py"];
    Ok(SampleImages {
        static_server: store(
            to,
            "static-server",
            run(&serve, None),
            std::slice::from_ref(&program),
        )?,
        interpreter: store(
            to,
            "interpreter",
            run(&python, None),
            &[layers::layer(cache, &layers::INTERPRETER)?, every_kind()?],
        )?,
        distroless: store(
            to,
            "distroless",
            run(&serve, Some(NONROOT)),
            &[layers::layer(cache, &layers::DISTROLESS)?, program],
        )?,
    })
}

/// A layer with every kind of entry that a layer may have, and the workload.
fn every_kind() -> Result<Layer> {
    let mut layer = LayerBuilder::default();
    layer.file("srv/server.py", 0o644, (0, 0), SERVER_PY.as_bytes())?;

    layer.file("opt/tool", 0o755, (0, 0), b"tool")?;
    for number in 0..HARD_LINKS {
        let path = format!("opt/bin/{number}");
        layer.link(EntryType::Link, path.as_bytes(), "opt/tool")?;
    }
    for number in 0..SYMLINKS {
        let target = match number % 3 {
            0 => format!("../bin/{number}"),
            1 => format!("/opt/bin/{number}"),
            _ => format!("nowhere/{number}"),
        };
        let path = format!("opt/links/{number}");
        layer.link(EntryType::Symlink, path.as_bytes(), &target)?;
    }

    // `struct vfs_cap_data`, revision 2, effective: CAP_NET_BIND_SERVICE.
    let capability = [0x0200_0001_u32, 1 << 10, 0, 0, 0].map(u32::to_le_bytes);
    layer.attribute(
        "SCHILY.xattr.security.capability",
        capability.as_flattened(),
    )?;
    layer.file("opt/capable", 0o755, (0, 0), b"capable")?;
    layer.attribute("SCHILY.xattr.user.note", &pattern(20_000))?;
    layer.file("opt/noted", 0o644, (0, 0), b"noted")?;

    layer.file("opt/set-id", 0o6755, (0, 4), b"set-id")?;
    layer.file("opt/private", 0o000, (1000, 1001), b"private")?;
    layer.file("opt/high", 0o640, (4_000_000_000, 70_000), b"high")?;
    layer.file("opt/empty", 0o644, (0, 0), b"")?;
    layer.file("opt/large", 0o644, (0, 0), &pattern(8 << 20))?;
    layer.directory("opt/sticky", 0o1777, (33, 33))?;
    layer.file_at(b"opt/caf\xe9", b"not UTF-8")?;
    layer.file_at("opt/\u{e9}\u{4e2d}/\u{1f512}".as_bytes(), b"UTF-8")?;
    let long = format!("opt/{}/{}", vec!["long"; 60].join("/"), "n".repeat(255));
    layer.file_at(long.as_bytes(), b"long")?;

    // What the layer below has: one file less, and one directory anew.
    layer.file("etc/.wh.debian_version", 0o644, (0, 0), b"")?;
    layer.file("usr/share/base-files/.wh..wh..opq", 0o644, (0, 0), b"")?;
    layer.file("usr/share/base-files/only", 0o644, (0, 0), b"only")?;
    layer.finish()
}

/// Bytes that do not repeat within a block.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at % 251).to_le_bytes()[0] ^ (at / 4096).to_le_bytes()[0])
        .collect()
}

/// Writes what our own archives never have.
struct LayerBuilder {
    tar: Builder<Vec<u8>>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self {
            tar: Builder::new(Vec::new()),
        }
    }
}

impl LayerBuilder {
    fn file(&mut self, path: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Result<()> {
        let mut header = header(EntryType::Regular, mode, owner);
        header.set_size(content.len() as u64);
        self.tar
            .append_data(&mut header, path, content)
            .with_context(|| format!("add {path}"))
    }

    /// A file with any name.
    fn file_at(&mut self, path: &[u8], content: &[u8]) -> Result<()> {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt as _;
        let mut header = header(EntryType::Regular, 0o644, (0, 0));
        header.set_size(content.len() as u64);
        self.tar
            .append_data(&mut header, OsStr::from_bytes(path), content)
            .context("add a file")
    }

    fn directory(&mut self, path: &str, mode: u32, owner: (u64, u64)) -> Result<()> {
        let mut header = header(EntryType::Directory, mode, owner);
        self.tar
            .append_data(&mut header, path, std::io::empty())
            .with_context(|| format!("add {path}"))
    }

    fn link(&mut self, kind: EntryType, path: &[u8], target: &str) -> Result<()> {
        let mut header = header(kind, 0o777, (0, 0));
        let path = String::from_utf8_lossy(path).into_owned();
        self.tar
            .append_link(&mut header, &path, target)
            .with_context(|| format!("add {path}"))
    }

    /// An extended attribute of the next entry.
    fn attribute(&mut self, name: &str, value: &[u8]) -> Result<()> {
        self.tar
            .append_pax_extensions([(name, value)])
            .with_context(|| format!("add {name}"))
    }

    fn finish(self) -> Result<Layer> {
        let tar = self.tar.into_inner().context("end the archive")?;
        Layer::gzip(&Rope::from(tar)).context("compress the layer")
    }
}

fn header(kind: EntryType, mode: u32, (uid, gid): (u64, u64)) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_mtime(0);
    header.set_size(0);
    header
}

/// A distribution's files without what only people read.
pub(crate) fn pack_interpreter(from: &Tree) -> Result<Tree> {
    let mut root = Tree::default();
    let unread = ["usr/share/doc/", "usr/share/man/", "usr/share/locale/"];
    root.take_all(from, |path| {
        !unread.iter().any(|directory| path.starts_with(directory))
    });
    for (link, target) in [
        ("bin", "usr/bin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
    ] {
        root.symlink(link, target);
    }
    accounts(&mut root);
    root.read("usr/bin/python3")
        .context("there is no interpreter")?;
    Ok(root)
}

/// Certificates, time zones, names of services, and a user.
pub(crate) fn pack_distroless(from: &Tree) -> Result<Tree> {
    let mut root = Tree::default();
    root.take_all(from, |path| {
        path.starts_with("usr/share/zoneinfo/")
            || path.starts_with("usr/share/ca-certificates/")
            || path == "usr/lib/os-release"
            || path == "etc/services"
            || path == "etc/protocols"
    });
    root.directory("home/nonroot", 0o755);
    accounts(&mut root);
    root.read("etc/services")
        .context("there are no names of services")?;
    Ok(root)
}

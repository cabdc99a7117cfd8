//! QEMU with IGVM files, which Debian's own build lacks: Debian's source package
//! and the `igvm` crate's C API, compiled in a root of Debian's packages.
//!
//! The root is of the suite that the launcher's image is packed from, so what is
//! compiled runs with the libraries of that image and depends on nothing of this
//! machine.

use crate::debian::{Package, Suite};
use crate::layers::{self, Program};
use crate::programs::{tools_directory, workspace_root};
use crate::tree::Tree;
use anyhow::{Context, Result, bail, ensure};
use assay_cluster::{Cache, command, pins, progress::say};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Stdio;

/// Where the program goes, beside Debian's QEMU where there is one.
pub(crate) const PATH: &str = "usr/bin/qemu-igvm";

/// Changes with the functions here, whose text is not part of the key.
const REVISION: u32 = 1;

/// What the build calls and links with.
const PACKAGES: &[&str] = &[
    "bash",
    "ca-certificates",
    "coreutils",
    "dash",
    "diffutils",
    "dpkg-dev",
    "findutils",
    "gcc",
    "grep",
    "gzip",
    "hostname",
    "libc6-dev",
    "libfdt-dev",
    "libglib2.0-dev",
    "libseccomp-dev",
    "libslirp-dev",
    "make",
    "meson",
    "ninja-build",
    "pkgconf",
    "python3",
    "python3-venv",
    "sed",
    "zlib1g-dev",
];

/// The devices of a guest, and of no other machine. QEMU's own rules add what
/// they need, but for CXL: without it the tables of q35 do not link.
const DEVICES: &str = "\
CONFIG_Q35=y
CONFIG_SEV=y
CONFIG_TDX=y
CONFIG_HPET=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_NET=y
CONFIG_VIRTIO_RNG=y
CONFIG_VIRTIO_SERIAL=y
CONFIG_GENERIC_LOADER=y
CONFIG_PXB=y
CONFIG_CXL=y
CONFIG_CXL_MEM_DEVICE=y
CONFIG_PCIE_PORT=y
";

/// Runs inside the root. The description's name is its argument. Debian's `cc` is
/// a link of a maintainer script, and none is run here.
const SCRIPT: &str = r#"set -e
export PATH=/usr/bin:/usr/sbin HOME=/tmp LC_ALL=C SOURCE_DATE_EPOCH=0
cd /src
dpkg-source --no-check -x "$1" qemu
cp devices.mak qemu/configs/devices/x86_64-softmmu/assay.mak
mkdir build
cd build
../qemu/configure --prefix=/usr --cc=gcc --host-cc=gcc \
    --target-list=x86_64-softmmu --with-devices-x86_64=assay \
    --without-default-devices --without-default-features \
    --enable-system --enable-tcg --enable-kvm --enable-igvm --enable-fdt=system \
    --enable-slirp --enable-seccomp --disable-install-blobs --disable-werror
ninja qemu-system-x86_64
strip -o /src/qemu-system-x86_64 qemu-system-x86_64
"#;

/// The program, from the cache or built now.
pub(crate) fn build(cache: &Cache) -> Result<Program> {
    let suite = Suite::open(cache, pins::DEBIAN_SUITE)?;
    let mut unpacked = false;
    match make(cache, &suite, &mut unpacked) {
        // A mirror drops a package when a newer version arrives.
        Err(error) if !unpacked => {
            say(format!(
                "{error:#}; trying again with a fresh package index"
            ));
            suite.refresh()?;
            make(cache, &suite, &mut unpacked)
        }
        made => made,
    }
}

fn make(cache: &Cache, suite: &Suite, unpacked: &mut bool) -> Result<Program> {
    let packages = suite.resolve(PACKAGES)?;
    let igvm = igvm_version(&workspace_root())?;
    let list = inputs(&packages, &igvm);
    let digest = hex::encode(Sha256::digest(list.as_bytes()));
    let name = format!("qemu-igvm-{}", digest.get(..16).unwrap_or(&digest));
    let what = format!(
        "QEMU {} with IGVM (minutes, once; needs root)",
        pins::QEMU_SOURCE
    );
    let entry = cache.entry("programs", &name, &what, |scratch| {
        let tree = suite.unpack(&packages)?;
        *unpacked = true;
        let root = scratch.join("root");
        prepare(&tree, &igvm)?.write_to(&root)?;
        layers::make_devices(&root)?;
        let source = Package {
            name: "qemu".to_owned(),
            version: pins::QEMU_SOURCE.to_owned(),
        };
        let description = Suite::open_sources(cache, pins::QEMU_SOURCE_SUITE)?
            .download_source(&source, &root.join("src"))
            .context(
                "pin another version of 10.1 or later in e2e/cluster/src/pins.rs, QEMU_SOURCE",
            )?;
        compile(&root, &description, &cache.log("qemu-igvm")?)?;
        let built = root.join("src/qemu-system-x86_64");
        fs::rename(&built, scratch.join("qemu-igvm"))
            .with_context(|| format!("take {}", built.display()))?;
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
        let inputs = scratch.join("inputs.txt");
        fs::write(&inputs, &list).with_context(|| format!("write {}", inputs.display()))
    })?;
    Ok(Program {
        file: entry.join("qemu-igvm"),
        path: PATH,
        key: name,
    })
}

/// Everything that the program's bytes depend on.
fn inputs(packages: &[Package], igvm: &str) -> String {
    let mut list = format!(
        "revision {REVISION}\nqemu {}\nigvm {igvm}\n",
        pins::QEMU_SOURCE
    );
    for package in packages {
        let _ = writeln!(list, "{} {}", package.name, package.version);
    }
    for text in [
        DEVICES,
        SCRIPT,
        assay_libigvm::FUNCTIONS_HEADER,
        assay_libigvm::FORMAT_HEADER,
    ] {
        list.push_str(text);
    }
    list
}

/// The version of the `igvm` crate, as Cargo.lock has it.
fn igvm_version(checkout: &Path) -> Result<String> {
    let path = checkout.join("Cargo.lock");
    let lock = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let (_, after) = lock
        .split_once("name = \"igvm\"\nversion = \"")
        .context("Cargo.lock has no package igvm")?;
    let version = after.split('"').next().unwrap_or_default();
    Ok(version.to_owned())
}

/// The root that the build runs in.
fn prepare(packages: &Tree, igvm: &str) -> Result<Tree> {
    const HEADERS: &str = "usr/include/igvm";
    const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
    let mut root = layers::pack_ca_certificates(packages)?;
    root.take_all(packages, |_| true);
    for directory in ["bin", "lib", "lib64", "sbin"] {
        root.symlink(directory, &format!("usr/{directory}"));
    }
    root.directory("dev", 0o755).directory("tmp", 0o777);
    root.file(
        &format!("{HEADERS}/igvm.h"),
        0o644,
        assay_libigvm::FUNCTIONS_HEADER,
    );
    root.file(
        &format!("{HEADERS}/igvm_defs.h"),
        0o644,
        assay_libigvm::FORMAT_HEADER,
    );
    root.file(
        &format!("{LIBRARIES}/pkgconfig/igvm.pc"),
        0o644,
        format!(
            "Name: igvm\nDescription: C API of the igvm crate\nVersion: {igvm}\nLibs: -ligvm\n\
             Cflags:\n"
        ),
    );
    root.file(&format!("{LIBRARIES}/libigvm.a"), 0o644, library()?);
    root.file("src/devices.mak", 0o644, DEVICES);
    root.file("src/build.sh", 0o644, SCRIPT);
    Ok(root)
}

/// The C API as a static library.
fn library() -> Result<Vec<u8>> {
    let mut cargo = command::with_args(
        "cargo",
        ["build", "--release", "--locked", "--quiet", "--package"],
    );
    cargo.arg("assay-libigvm").current_dir(workspace_root());
    let status = cargo.status().context("run cargo")?;
    ensure!(
        status.success(),
        "`{}` failed ({status})",
        command::display(&cargo)
    );
    let path = tools_directory().join("libassay_libigvm.a");
    fs::read(&path).with_context(|| format!("read {}", path.display()))
}

/// Runs the script, with its output in a log and every tenth of it on the screen.
fn compile(root: &Path, description: &str, log: &Path) -> Result<()> {
    let mut chroot = command::with_args("chroot", [root.as_os_str()]);
    chroot.args(["/usr/bin/sh", "-c", "exec sh /src/build.sh \"$0\" 2>&1"]);
    chroot.arg(description);
    let mut file = fs::File::create(log).with_context(|| format!("write {}", log.display()))?;
    let mut child = chroot
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("run chroot; building QEMU needs root")?;
    let output = child.stdout.take().context("chroot has no output")?;
    let mut said = 0;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("read the build's output")?;
        file.write_all(&line)
            .and_then(|()| file.write_all(b"\n"))
            .with_context(|| format!("write {}", log.display()))?;
        if let Some(tenth) = tenth(&String::from_utf8_lossy(&line))
            && tenth > said
        {
            said = tenth;
            say(format!("compiling QEMU: {}%", tenth * 10));
        }
    }
    let status = child.wait().context("wait for the build")?;
    if !status.success() {
        bail!(
            "building QEMU failed ({status}). Log {}:\n{}",
            log.display(),
            command::tail(log)
        );
    }
    Ok(())
}

/// How many tenths of its steps ninja has done, by a line such as `[12/1393] …`.
fn tenth(line: &str) -> Option<u32> {
    let (done, all) = line.strip_prefix('[')?.split_once(']')?.0.split_once('/')?;
    let (done, all): (u32, u32) = (done.parse().ok()?, all.parse().ok()?);
    done.checked_mul(10)?.checked_div(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_ninja_s_lines() {
        assert_eq!(tenth("[1/1393] Compiling C object"), Some(0));
        assert_eq!(tenth("[700/1393] Linking"), Some(5));
        assert_eq!(tenth("[1393/1393] Linking"), Some(10));
        for line in ["", "ninja: no work to do.", "[1/0] x", "[a/b] x", "[1393]"] {
            assert_eq!(tenth(line), None, "{line}");
        }
    }

    #[test]
    fn the_key_follows_every_input() {
        let package = |version: &str| Package {
            name: "gcc".to_owned(),
            version: version.to_owned(),
        };
        let base = inputs(&[package("1")], "0.5.0");
        assert_ne!(inputs(&[package("2")], "0.5.0"), base);
        assert_ne!(inputs(&[package("1")], "0.5.1"), base);
        for part in [
            pins::QEMU_SOURCE,
            "CONFIG_Q35=y",
            "--enable-igvm",
            "igvm_free",
        ] {
            assert!(base.contains(part), "{part}");
        }
    }

    #[test]
    fn the_crate_s_version_is_found() {
        let version = igvm_version(&workspace_root()).unwrap();
        assert!(version.starts_with("0."), "{version}");
    }
}

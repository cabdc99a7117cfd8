//! The layers that are packed from Debian's packages: boot kit, launcher root,
//! web server of the quickstart. Each is made once per set of package versions
//! and kept in the cache.

use crate::debian::{Package, Suite};
use crate::qemu;
use crate::samples::{pack_distroless, pack_interpreter};
use crate::tree::Tree;
use anyhow::{Context, Result, bail};
use assay_cluster::{Cache, pins, progress::say};
use assay_image::boot_kit::{PackOptions, pack_kit};
use assay_image::flatten::{StoredLayer, flatten};
use assay_image::modules::{GUEST_MODULES, KIT_MODULES};
use assay_image::oci::{Layer, LayerCompression};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// A layer and how it comes about.
pub(crate) struct Recipe {
    /// Name in the cache and in messages.
    pub(crate) name: &'static str,
    /// Changes with the pack function, whose text is not part of the key.
    revision: u32,
    /// Suites with the packages that are wanted from each.
    sources: &'static [Source],
    /// Programs that are built, and added to what the packages hold.
    programs: &'static [fn(&Cache) -> Result<Program>],
    /// Makes the layer's tree from the packages'.
    pack: fn(&Tree) -> Result<Tree>,
}

/// A program that was built.
pub(crate) struct Program {
    /// Where it is.
    pub(crate) file: PathBuf,
    /// Where it goes.
    pub(crate) path: &'static str,
    /// Changes with its bytes.
    pub(crate) key: String,
}

/// Packages of one suite.
struct Source {
    suite: &'static str,
    packages: &'static [&'static str],
    dependencies: Dependencies,
}

/// Whether what the packages depend on is unpacked too.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dependencies {
    /// Everything they need to run.
    All,
    /// Only packages whose name starts like one of these, besides those named:
    /// metapackages name their content by version.
    Named(&'static [&'static str]),
}

/// The build of OVMF that verifies the kernel hashes.
const FIRMWARE: &str = "usr/share/ovmf/OVMF.amdsev.fd";
/// Where a root file system says which packages it has.
const DPKG_STATUS: &str = "var/lib/dpkg/status";
/// A layer's name in the cache.
const TAR: &str = "layer.tar";
/// Its name when it is a file in the cache.
const FIRMWARE_FILE: &str = "OVMF.amdsev.fd";

/// Kernel with modules, EFI stub and firmware.
pub(crate) const BOOT_KIT: Recipe = Recipe {
    name: "boot-kit",
    revision: 2,
    sources: &[
        Source {
            suite: pins::DEBIAN_SUITE,
            packages: &["linux-image-cloud-amd64", "systemd-boot-efi"],
            dependencies: Dependencies::Named(&["linux-image-6"]),
        },
        // trixie's ovmf has no build that verifies the kernel hashes.
        Source {
            suite: pins::FIRMWARE_SUITE,
            packages: &["ovmf-amdsev"],
            dependencies: Dependencies::Named(&[]),
        },
    ],
    programs: &[],
    pack: pack_boot_kit,
};

/// QEMU for the launcher, without anything it can do without. Debian's QEMU
/// loads no IGVM files, so its package gives ROMs and libraries, and the program
/// is built from its source.
pub(crate) const LAUNCHER_ROOT: Recipe = Recipe {
    name: "launcher-root",
    revision: 2,
    sources: &[Source {
        suite: pins::DEBIAN_SUITE,
        packages: &["qemu-system-x86"],
        dependencies: Dependencies::All,
    }],
    programs: &[qemu::build],
    pack: pack_launcher_root,
};

/// The quickstart's web server.
pub(crate) const WEB_SERVER: Recipe = Recipe {
    name: "web-server",
    revision: 2,
    sources: &[Source {
        suite: pins::DEBIAN_SUITE,
        packages: &["nginx"],
        dependencies: Dependencies::All,
    }],
    programs: &[],
    pack: pack_web_server,
};

/// An interpreter with its library.
pub(crate) const INTERPRETER: Recipe = Recipe {
    name: "interpreter",
    revision: 1,
    sources: &[Source {
        suite: pins::DEBIAN_SUITE,
        packages: &["base-files", "python3"],
        dependencies: Dependencies::All,
    }],
    programs: &[],
    pack: pack_interpreter,
};

/// What images without a distribution have.
pub(crate) const DISTROLESS: Recipe = Recipe {
    name: "distroless",
    revision: 2,
    sources: &[Source {
        suite: pins::DEBIAN_SUITE,
        packages: &["base-files", "ca-certificates", "netbase", "tzdata"],
        dependencies: Dependencies::Named(&[]),
    }],
    programs: &[],
    pack: pack_distroless,
};

/// Programs that give second opinions on images, and what they boot.
const IMAGE_ORACLES: Recipe = Recipe {
    name: "image-oracles",
    revision: 5,
    sources: &[
        Source {
            suite: pins::DEBIAN_SUITE,
            packages: &[
                "binutils",
                "coreutils",
                "cpio",
                "cryptsetup-bin",
                "erofs-utils",
                // Another date for a program that is not to care.
                "libfaketime",
                // What systemd-measure signs with, which is no dependency of it.
                "libtss2-esys-3.0.2-0t64",
                "libtss2-mu-4.0.1-0t64",
                "libtss2-rc0t64",
                "openssl",
                "qemu-system-x86",
                "sbsigntool",
                "swtpm",
                "systemd",
                "systemd-boot-tools",
                "systemd-ukify",
            ],
            dependencies: Dependencies::All,
        },
        Source {
            suite: pins::DEBIAN_SUITE,
            packages: &[
                "busybox-static",
                "linux-image-cloud-amd64",
                "ovmf",
                "systemd-boot-efi",
            ],
            dependencies: Dependencies::Named(&["linux-image-6"]),
        },
    ],
    programs: &[qemu::build],
    pack: pack_image_oracles,
};

/// Firmware beside the boot kit's, to be measured by others and us.
const OTHER_FIRMWARE: Recipe = Recipe {
    name: "other-firmware",
    revision: 1,
    sources: &[Source {
        suite: pins::FIRMWARE_SUITE,
        packages: &["ovmf-generic", "ovmf-inteltdx"],
        dependencies: Dependencies::Named(&[]),
    }],
    programs: &[],
    pack: pack_other_firmware,
};

/// Certificates of the public authorities.
pub(crate) const CA_CERTIFICATES: Recipe = Recipe {
    name: "ca-certificates",
    revision: 1,
    sources: &[Source {
        suite: pins::DEBIAN_SUITE,
        packages: &["ca-certificates"],
        dependencies: Dependencies::Named(&[]),
    }],
    programs: &[],
    pack: pack_ca_certificates,
};

/// A shell and small tools, for test pods.
pub(crate) const BUSYBOX: Recipe = Recipe {
    name: "busybox",
    revision: 1,
    sources: &[Source {
        suite: pins::DEBIAN_SUITE,
        packages: &["busybox-static"],
        dependencies: Dependencies::Named(&[]),
    }],
    programs: &[],
    pack: pack_busybox,
};

/// The layer as a tar archive in the cache, where it was or is now.
pub(crate) fn archive(cache: &Cache, recipe: &Recipe) -> Result<PathBuf> {
    let store = |tree: &Tree, dir: &Path| write(&dir.join(TAR), &tree.to_tar().to_bytes());
    Ok(entry(cache, recipe, store)?.join(TAR))
}

/// The layer, from the cache or made now.
pub(crate) fn layer(cache: &Cache, recipe: &Recipe) -> Result<Layer> {
    let file = archive(cache, recipe)?;
    let tar = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    Ok(Layer::tar(tar))
}

/// A root directory with the programs that give second opinions on images.
pub(crate) fn image_oracles(cache: &Cache) -> Result<PathBuf> {
    const ROOT: &str = "root";
    let store = |tree: &Tree, dir: &Path| {
        let root = dir.join(ROOT);
        tree.write_to(&root)?;
        make_devices(&root)
    };
    Ok(entry(cache, &IMAGE_ORACLES, store)?.join(ROOT))
}

/// Makes what scripts start programs with, and where programs look for random
/// numbers.
pub(crate) fn make_devices(root: &Path) -> Result<()> {
    for (name, minor) in [("null", 3), ("random", 8), ("urandom", 9)] {
        let device = root.join("dev").join(name);
        let kind = FileType::CharacterDevice;
        mknodat(CWD, &device, kind, Mode::from(0o666), makedev(1, minor))
            .with_context(|| format!("make {}; this needs root", device.display()))?;
    }
    Ok(())
}

/// Files of Debian's firmware beside the boot kit's.
pub(crate) fn other_firmware(cache: &Cache) -> Result<Vec<PathBuf>> {
    let store = |tree: &Tree, dir: &Path| tree.write_to(dir);
    let entry = entry(cache, &OTHER_FIRMWARE, store)?;
    Ok(OTHER_FIRMWARE_FILES.map(|file| entry.join(file)).to_vec())
}

/// The boot kit's firmware, as a file.
pub(crate) fn firmware(cache: &Cache) -> Result<PathBuf> {
    let kit = layer(cache, &BOOT_KIT)?;
    let name = format!("firmware-{}", kit.blob().digest().to_hex());
    let what = "firmware of the boot kit";
    let entry = cache.entry("layers", &name, what, |scratch| {
        let mut tree = Tree::default();
        tree.extend_from_tar(&*kit.blob().content().to_bytes())?;
        write(&scratch.join(FIRMWARE_FILE), tree.read(FIRMWARE)?)
    })?;
    Ok(entry.join(FIRMWARE_FILE))
}

/// A recipe's entry in the cache. `store` writes the packed tree to it.
fn entry(
    cache: &Cache,
    recipe: &Recipe,
    store: impl Fn(&Tree, &Path) -> Result<()>,
) -> Result<PathBuf> {
    match make(cache, recipe, &store, false) {
        Ok(entry) => Ok(entry),
        // A mirror drops a package when a newer version arrives; the index that
        // still names it is then as old as the failure.
        Err(error) => {
            say(format!(
                "{error:#}; trying again with a fresh package index"
            ));
            make(cache, recipe, &store, true)
        }
    }
}

fn make(
    cache: &Cache,
    recipe: &Recipe,
    store: &impl Fn(&Tree, &Path) -> Result<()>,
    refresh: bool,
) -> Result<PathBuf> {
    let mut sources = Vec::new();
    for source in recipe.sources {
        let suite = Suite::open(cache, source.suite)?;
        if refresh {
            suite.refresh()?;
        }
        let packages = wanted(source, suite.resolve(source.packages)?);
        sources.push((suite, packages));
    }
    let programs = recipe
        .programs
        .iter()
        .map(|build| build(cache))
        .collect::<Result<Vec<Program>>>()?;
    let mut list = String::new();
    for program in &programs {
        let _ = writeln!(list, "{}", program.key);
    }
    for package in sources.iter().flat_map(|(_, packages)| packages) {
        let _ = writeln!(list, "{} {}", package.name, package.version);
    }
    let mut key = format!("{} {}\n{list}", recipe.name, recipe.revision);
    if recipe.name == BOOT_KIT.name {
        let modules = GUEST_MODULES.iter().chain(&KIT_MODULES);
        key.extend(modules.flat_map(|module| [module.name, "\n"]));
    }
    let hash: String = hex::encode(Sha256::digest(key.as_bytes()))
        .chars()
        .take(16)
        .collect();
    let what = format!("{} from Debian packages", recipe.name);
    let name = format!("{}-{hash}", recipe.name);
    cache.entry("layers", &name, &what, |scratch| {
        let mut all = Tree::default();
        for (suite, packages) in &sources {
            all.take_all(&suite.unpack(packages)?, |_| true);
        }
        all.file(DPKG_STATUS, 0o644, dpkg_status(&sources));
        for program in &programs {
            let content = fs::read(&program.file)
                .with_context(|| format!("read {}", program.file.display()))?;
            all.file(program.path, 0o755, content);
        }
        store(&(recipe.pack)(&all)?, scratch)?;
        write(&scratch.join("packages.txt"), list.as_bytes())
    })
}

/// dpkg's database of packages that were only unpacked.
fn dpkg_status(sources: &[(Suite, Vec<Package>)]) -> String {
    let packages = sources.iter().flat_map(|(_, packages)| packages);
    packages.fold(String::new(), |mut text, Package { name, version }| {
        let _ = writeln!(text, "Package: {name}\nVersion: {version}\n");
        text
    })
}

fn wanted(source: &Source, resolved: Vec<Package>) -> Vec<Package> {
    let Dependencies::Named(prefixes) = source.dependencies else {
        return resolved;
    };
    resolved
        .into_iter()
        .filter(|package| {
            source.packages.contains(&package.name.as_str())
                || prefixes
                    .iter()
                    .any(|prefix| package.name.starts_with(prefix))
        })
        .collect()
}

fn pack_boot_kit(from: &Tree) -> Result<Tree> {
    let layer = from.to_layer();
    let stored = StoredLayer {
        bytes: layer.blob().content().to_bytes(),
        compression: LayerCompression::None,
    };
    let tree = flatten(&[stored], &[layer.blob().digest()]).context("read the packages' files")?;
    let packed = pack_kit(&tree, &PackOptions::default())?;
    let mut kit = Tree::default();
    kit.extend_from_tar(&*packed.tar.to_bytes())?;
    Ok(kit)
}

fn pack_launcher_root(from: &Tree) -> Result<Tree> {
    let mut root = Tree::default();
    root.take_program(from, qemu::PATH)?;
    root.symlink("usr/bin/qemu-system-x86_64", "qemu-igvm");
    // What q35 with virtio devices loads at start-up.
    for rom in ["kvmvapic.bin", "linuxboot_dma.bin", "efi-virtio.rom"] {
        root.take(from, &rom_path(from, rom)?)?;
    }
    root.directory("tmp", 0o777);
    accounts(&mut root);
    Ok(root)
}

/// QEMU looks in its own directory, and Debian keeps some ROMs in others that it
/// searches too.
fn rom_path(from: &Tree, name: &str) -> Result<String> {
    from.paths()
        .find(|path| path.starts_with("usr/share/qemu/") && path.ends_with(&format!("/{name}")))
        .or_else(|| {
            from.paths()
                .find(|path| path.ends_with(&format!("/{name}")))
        })
        .map(str::to_owned)
        .with_context(|| format!("no package has {name}"))
}

fn pack_web_server(from: &Tree) -> Result<Tree> {
    let mut root = Tree::default();
    root.take_program(from, "usr/sbin/nginx")?;
    root.take(from, DPKG_STATUS)?;
    root.file("etc/nginx/nginx.conf", 0o644, NGINX_CONF);
    root.file("usr/share/quickstart/index.html", 0o644, INDEX_HTML);
    root.directory("tmp", 0o777);
    root.directory("run/secrets", 0o755);
    accounts(&mut root);
    Ok(root)
}

/// Everything that is written goes to /tmp, so that the root may be read-only.
const NGINX_CONF: &str = r#"worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr notice;

events {
    worker_connections 256;
}

http {
    default_type text/html;
    server_tokens off;
    access_log /dev/stdout;
    client_body_temp_path /tmp/client-body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;

    server {
        listen 8080;
        root /usr/share/quickstart;

        location = /healthz {
            access_log off;
            default_type text/plain;
            return 200 "ok\n";
        }

        location / {
            auth_basic "measured guest";
            auth_basic_user_file /run/secrets/htpasswd;
        }
    }
}
"#;

const INDEX_HTML: &str = "<!DOCTYPE html>\n<title>Assay quickstart</title>\n\
    <h1>Hello from inside a measured guest</h1>\n\
    <p>You see this page because the guest proved what it runs and was given \
    the password file.</p>\n";

fn pack_image_oracles(from: &Tree) -> Result<Tree> {
    const UNREAD: [&str; 5] = [
        "usr/lib/modules/",
        "usr/share/doc/",
        "usr/share/i18n/",
        "usr/share/locale/",
        "usr/share/man/",
    ];
    // What a guest mounts our images with.
    const MODULES: [&str; 4] = [
        "/crc32c-intel.ko.xz",
        "/libcrc32c.ko.xz",
        "/erofs.ko.xz",
        "/virtio_blk.ko.xz",
    ];
    let mut root = Tree::default();
    root.take_all(from, |path| {
        MODULES.iter().any(|module| path.ends_with(module))
            || !UNREAD.iter().any(|unread| path.starts_with(unread))
    });
    for directory in ["bin", "lib", "lib64", "sbin"] {
        root.symlink(directory, &format!("usr/{directory}"));
    }
    // Packages move their programs from one version to the next.
    for program in ["usr/bin/ukify", "usr/lib/systemd/systemd-measure"] {
        root.read(program)?;
    }
    root.directory("dev", 0o755)
        .directory("tmp", 0o777)
        .directory("var/tmp", 0o777);
    Ok(root)
}

/// A build for any guest, and one for TDX whose SEV sections have no kernel hashes
/// and partly no size.
const OTHER_FIRMWARE_FILES: [&str; 2] = ["OVMF.fd", "OVMF.inteltdx.ms.fd"];

fn pack_other_firmware(from: &Tree) -> Result<Tree> {
    let mut root = Tree::default();
    for file in OTHER_FIRMWARE_FILES {
        let content = from.read(&format!("usr/share/ovmf/{file}"))?.to_vec();
        root.file(file, 0o644, content);
    }
    Ok(root)
}

pub(crate) fn pack_ca_certificates(from: &Tree) -> Result<Tree> {
    let mut bundle = Vec::new();
    let authorities = from
        .paths()
        .filter(|path| path.starts_with("usr/share/ca-certificates/"));
    for path in authorities.filter(|path| Path::new(path).extension().is_some_and(|e| e == "crt")) {
        bundle.extend_from_slice(from.read(path)?);
    }
    if bundle.is_empty() {
        bail!("the package ca-certificates holds no certificate");
    }
    let mut root = Tree::default();
    root.file("etc/ssl/certs/ca-certificates.crt", 0o644, bundle);
    Ok(root)
}

fn pack_busybox(from: &Tree) -> Result<Tree> {
    let mut root = Tree::default();
    root.file("bin/busybox", 0o755, from.read("usr/bin/busybox")?);
    for name in [
        "sh", "cat", "httpd", "ls", "nc", "nslookup", "printf", "sleep", "wget",
    ] {
        root.symlink(&format!("bin/{name}"), "busybox");
    }
    accounts(&mut root);
    Ok(root)
}

/// The user that everything of ours runs as.
pub(crate) fn accounts(root: &mut Tree) {
    root.file(
        "etc/passwd",
        0o644,
        "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n",
    );
    root.file("etc/group", 0o644, "root:x:0:\nnonroot:x:65532:\n");
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_unpacked_of_a_metapackage() {
        let package = |name: &str| Package {
            name: name.to_owned(),
            version: "1".to_owned(),
        };
        let resolved = vec![
            package("linux-image-6.12.107+deb13-cloud-amd64"),
            package("linux-image-cloud-amd64"),
            package("systemd"),
            package("systemd-boot-efi"),
        ];
        let names: Vec<_> = wanted(&BOOT_KIT.sources[0], resolved)
            .into_iter()
            .map(|p| p.name)
            .collect();
        assert_eq!(
            names,
            [
                "linux-image-6.12.107+deb13-cloud-amd64",
                "linux-image-cloud-amd64",
                "systemd-boot-efi"
            ]
        );
    }
}

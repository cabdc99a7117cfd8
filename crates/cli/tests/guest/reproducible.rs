//! The same inputs give the same bytes whoever builds, where and when; and another
//! byte changes what it is part of, and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use assay_image::compare::compare;
use assay_image::oci::{OciImage, RunConfig};
use assay_image::read::ArtifactContent;
use tempfile::TempDir;

use crate::build::same_files;
use crate::{Prepared, image, prepared, stderr, web_config};

/// A directory with everything that a build reads, for any user.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new(prepared: &Prepared, within: &Path, more: &str) -> Self {
        let directory = tempfile::tempdir_in(within).unwrap();
        let place = Self { directory };
        prepared.layout(&place.path("layout"));
        let yaml = prepared.image_yaml("registry.invalid");
        let build = "    build:\n";
        assert!(yaml.contains(build));
        let yaml = yaml.replace(build, &format!("{build}{more}"));
        fs::write(place.path("image.yaml"), yaml).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_assay"), place.path("assay")).unwrap();
        fs::copy(&prepared.agent, place.path("agent")).unwrap();
        fs::create_dir(place.path("out")).unwrap();
        fs::create_dir(place.path("elsewhere")).unwrap();
        for (name, mode) in [("", 0o755), ("out", 0o777), ("elsewhere", 0o777)] {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(place.path(name), mode).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Builds into `out/NAME` by way of a shell script, whose arguments are the
    /// command. The directory's path is `as_seen` there.
    fn build(&self, name: &str, as_seen: &Path, outside: &mut Command, script: &str) -> PathBuf {
        let at = |name: &str| as_seen.join(name);
        for variable in ["HOME", "XDG_CACHE_HOME", "DOCKER_CONFIG", "ASSAY_AGENT"] {
            outside.env_remove(variable);
        }
        let output = outside
            .args(["sh", "-euc", script, "sh"])
            .arg(at("assay"))
            .args(["build", "--progress", "plain", "-f"])
            .arg(at("image.yaml"))
            .arg("--agent")
            .arg(at("agent"))
            .arg("--rootfs-layout")
            .arg(at("layout"))
            .arg("--kit-layout")
            .arg(at("layout"))
            .arg("-o")
            .arg(at(&format!("out/{name}")))
            .arg("--disk-image")
            .arg(at(&format!("out/{name}.img")))
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        self.path(&format!("out/{name}"))
    }
}

/// How a build differs from another: what runs the shell, and the shell's script.
const CIRCUMSTANCES: [(&str, &[&str], &str); 10] = [
    ("again", &[], "exec \"$@\""),
    (
        "another-user",
        &[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
        ],
        "exec \"$@\"",
    ),
    ("umask", &[], "umask 077; exec \"$@\""),
    (
        "time-zone-and-language",
        &[
            "env",
            "TZ=Pacific/Kiritimati",
            "LC_ALL=tr_TR.UTF-8",
            "LANG=tr_TR.UTF-8",
        ],
        "exec \"$@\"",
    ),
    (
        "source-date-epoch",
        &["env", "SOURCE_DATE_EPOCH=86400"],
        "exec \"$@\"",
    ),
    ("one-processor", &["taskset", "-c", "0"], "exec \"$@\""),
    (
        "another-host",
        &["unshare", "--uts", "--pid", "--fork"],
        "echo elsewhere >/proc/sys/kernel/hostname; cd /; exec \"$@\"",
    ),
    (
        "no-environment",
        &["env", "-i", "PATH=/usr/bin:/bin"],
        "exec \"$@\"",
    ),
    (
        "tmpfs",
        &["unshare", "--mount"],
        "mount -t tmpfs tmpfs \"$ELSEWHERE\"; TMPDIR=$ELSEWHERE \"$@\" --scratch \"$ELSEWHERE\"",
    ),
    (
        "overlay",
        &["unshare", "--mount"],
        "mount -t tmpfs tmpfs \"$ELSEWHERE\"; cd \"$ELSEWHERE\"; mkdir upper work merged\n\
         mount -t overlay overlay -o lowerdir=/usr,upperdir=upper,workdir=work merged\n\
         mkdir merged/scratch; TMPDIR=$ELSEWHERE/merged/scratch \"$@\" --scratch \
         \"$ELSEWHERE/merged/scratch\"",
    ),
];

#[test]
fn circumstances_change_no_byte() {
    let Some(prepared) = prepared("builds under other circumstances") else {
        return;
    };
    // Compression is what threads work on.
    let more = "      compression: Lz4hc\n";
    let place = Place::new(prepared, &std::env::temp_dir(), more);
    let here = place.directory.path().to_owned();
    let first = place.build("first", &here, &mut Command::new("env"), "exec \"$@\"");
    let same = |name: &str, other: &Path| {
        same_files(&first, other);
        let disk = |artifact: &Path| fs::read(artifact.with_extension("img")).unwrap();
        assert!(disk(&first) == disk(other), "{name}: the disk image");
    };
    for (name, outside, script) in CIRCUMSTANCES {
        let mut command = Command::new("env");
        command
            .arg(format!("ELSEWHERE={}", place.path("elsewhere").display()))
            .args(outside);
        let other = place.build(name, &here, &mut command, script);
        same(name, &other);
    }

    // Another C library, on another day.
    let clock = |command: &mut Command| {
        command
            .arg(&prepared.oracles)
            .args([
                "env",
                "-i",
                "PATH=/usr/bin:/bin",
                "FAKETIME=@2001-02-03 04:05:06",
            ])
            .arg("LD_PRELOAD=/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1");
    };
    let mut date = Command::new("chroot");
    clock(&mut date);
    let year = date.args(["date", "+%Y"]).output().unwrap();
    assert_eq!(year.stdout, b"2001\n", "the clock is not another");
    let place = Place::new(prepared, &prepared.oracles.join("tmp"), more);
    let inside = place.directory.path().strip_prefix(&prepared.oracles);
    let inside = Path::new("/").join(inside.unwrap());
    let mut command = Command::new("chroot");
    clock(&mut command);
    // There is no authority's certificate in that root, and a client wants one.
    let authority = "../image/tests/keys/secure-boot.pem";
    let authority = Path::new(env!("CARGO_MANIFEST_DIR")).join(authority);
    fs::copy(authority, place.path("authority.pem")).unwrap();
    let authority = inside.join("authority.pem");
    command.arg(format!("SSL_CERT_FILE={}", authority.display()));
    command.arg("busybox");
    let other = place.build("2001", &inside, &mut command, "exec \"$@\"");
    same("2001", &other);
}

/// Where the content of a file begins in a tar archive.
fn content_at(tar: &[u8], path: &str) -> usize {
    let mut at = 0;
    loop {
        let header = &tar[at..at + 512];
        let text = |range: std::ops::Range<usize>| {
            let field = header[range].split(|byte| *byte == 0).next().unwrap();
            String::from_utf8(field.to_vec()).unwrap()
        };
        let name = text(0..100);
        assert!(!name.is_empty(), "there is no {path}");
        if name.ends_with(path) {
            return at + 512;
        }
        let len = usize::from_str_radix(text(124..136).trim(), 8).unwrap();
        at += 512 + len.next_multiple_of(512);
    }
}

/// An image with one bit of a file changed.
fn flipped(of: &OciImage, run: RunConfig, path: &str, offset: usize) -> OciImage {
    let mut tar = of.layers[0].content().to_bytes().to_vec();
    let at = content_at(&tar, path) + offset;
    tar[at] ^= 1;
    image(tar, run)
}

fn content(artifact: &Path) -> ArtifactContent {
    let file = |name: &str| fs::read(artifact.join(name)).unwrap().into();
    ArtifactContent {
        manifest: file("manifest.json"),
        uki: file("uki.efi"),
        firmware: file("firmware.fd"),
        root_disk: Some(file("rootfs.img")),
    }
}

#[test]
fn a_changed_byte_changes_what_it_is_part_of() {
    let Some(prepared) = prepared("builds with one byte changed") else {
        return;
    };
    let within = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let build = |prepared: &Prepared, more: &str| {
        let place = Place::new(prepared, within, more);
        let here = place.directory.path().to_owned();
        let artifact = place.build("it", &here, &mut Command::new("env"), "exec \"$@\"");
        content(&artifact)
    };
    let with = |kit: Option<OciImage>, web: Option<OciImage>| Prepared {
        kit: kit.unwrap_or_else(|| prepared.kit.clone()),
        web: web.unwrap_or_else(|| prepared.web.clone()),
        agent: prepared.agent.clone(),
        oracles: prepared.oracles.clone(),
    };
    let kit = |path: &str, offset| {
        let run = RunConfig::default();
        with(Some(flipped(&prepared.kit, run, path, offset)), None)
    };
    let agents = tempfile::tempdir().unwrap();
    let other_agent = {
        let mut agent = fs::read(&prepared.agent).unwrap();
        *agent.last_mut().unwrap() ^= 1;
        let path = agents.path().join("agent");
        fs::write(&path, agent).unwrap();
        Prepared {
            agent: path,
            ..with(None, None)
        }
    };
    let page = flipped(&prepared.web, web_config(), "/index.html", 20);

    let base = build(prepared, "");
    let root_hash = [
        "uki.efi > .initrd > etc/assay/guest.json > root.rootHash",
        "uki.efi > .initrd > etc/assay/guest.json > root.salt",
    ];
    let rows: [(&str, Prepared, &str, Vec<&str>); 6] = [
        (
            "a page of the web server",
            with(None, Some(page)),
            "",
            [
                &root_hash[..],
                &[
                    "rootfs.img > /usr/share/quickstart/index.html",
                    "rootfs.img > superblock",
                    "rootfs.img > hash tree",
                ],
            ]
            .concat(),
        ),
        (
            "the kernel",
            kit("/vmlinuz", 0x10_0000),
            "",
            vec!["uki.efi > .linux"],
        ),
        (
            "the stub",
            kit("/linuxx64.efi.stub", 0x1000),
            "",
            vec!["uki.efi > .text"],
        ),
        (
            "the firmware",
            kit("/OVMF.amdsev.fd", 0x1000),
            "",
            vec!["firmware.fd"],
        ),
        (
            "the guest agent",
            other_agent,
            "",
            vec!["uki.efi > .initrd > init"],
        ),
        (
            "the command line",
            with(None, None),
            "      extraCmdline: a=1\n",
            vec![
                "uki.efi > headers",
                "uki.efi > .cmdline",
                "uki.efi > .initrd > etc/assay/guest.json > cmdline",
            ],
        ),
    ];
    for (what, prepared, more, expected) in rows {
        let found = compare(&base, &build(&prepared, more));
        let places: Vec<String> = found.iter().map(|it| it.place.join(" > ")).collect();
        let (of_manifest, mut others): (Vec<_>, Vec<_>) = places
            .into_iter()
            .partition(|place| place.starts_with("manifest.json"));
        others.sort();
        let mut expected = expected;
        expected.sort_unstable();
        assert_eq!(others, expected, "{what}");
        // The table of contents says no more than that.
        for (file, member) in [
            ("uki.efi", "uki."),
            ("firmware.fd", "firmware."),
            ("rootfs.img", "rootDisk."),
        ] {
            let changed = expected.iter().any(|place| place.starts_with(file));
            let said = of_manifest
                .iter()
                .any(|place| place.starts_with(&format!("manifest.json > {member}")));
            assert_eq!(said, changed, "{what}: {member} {of_manifest:?}");
        }
    }
}

//! Second opinions for tests: programs by others, run in a root directory of
//! their own that `ASSAY_IMAGE_ORACLES` names (`cargo xtask programs`).

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use tempfile::TempDir;

use crate::newc::NewcBuilder;
use crate::tarball::Owner;
use crate::uki::{OptionalSections, UkiParts, encode_uki};

/// `timeout` of a guest that has nothing but what arguments give it.
const QEMU: [&str; 2] = ["300", "qemu-system-x86_64"];

/// The machine of such a guest.
const MACHINE: [&str; 9] = [
    "-accel",
    "tcg",
    "-machine",
    "q35",
    "-cpu",
    "max",
    "-nodefaults",
    "-display",
    "none",
];

/// Its memory.
const MEMORY: [&str; 2] = ["-m", "1024"];

/// The programs, and a directory to exchange files with them.
pub(crate) struct Oracles {
    root: PathBuf,
    scratch: TempDir,
}

impl Oracles {
    /// The command line of [`Self::uki`]. Linux gives up where no timer ticks in time,
    /// and under emulation on a busy machine it takes longer than that.
    pub(crate) const CMDLINE: &str = "console=ttyS0 panic=-1 no_timer_check";

    /// systemd-stub.
    pub(crate) const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";

    /// Where they are. Without them it says that `test` is skipped.
    pub(crate) fn find(test: &str) -> Option<Self> {
        let Some(root) = std::env::var_os("ASSAY_IMAGE_ORACLES") else {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED {test}: ASSAY_IMAGE_ORACLES is not set (cargo xtask programs)"
            );
            return None;
        };
        let root = PathBuf::from(root);
        let scratch = tempfile::tempdir_in(root.join("tmp")).unwrap();
        Some(Self { root, scratch })
    }

    /// A file that comes with the programs.
    pub(crate) fn file(&self, path: &str) -> Bytes {
        let path = self.root.join(path);
        fs::read(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .into()
    }

    /// A module of [`Oracles::kernel`], by its path below `kernel`.
    pub(crate) fn module(&self, path: &str) -> Bytes {
        let release = self.kernel_release();
        self.file(&format!("usr/lib/modules/{release}/kernel/{path}"))
    }

    /// The only kernel.
    pub(crate) fn kernel(&self) -> Bytes {
        self.file(&format!("boot/vmlinuz-{}", self.kernel_release()))
    }

    fn kernel_release(&self) -> String {
        let names = fs::read_dir(self.root.join("boot")).unwrap();
        let names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()))
            .collect();
        let [name] = names.as_slice() else {
            panic!("one kernel was expected: {names:?}");
        };
        name.clone()
    }

    /// A UKI whose guest loads modules, by their paths below `kernel`, runs a
    /// script with busybox's commands and its console, and goes.
    pub(crate) fn uki(&self, script: &str, modules: &[&str]) -> Bytes {
        let mut init = "#!/bin/busybox sh\n\
            /bin/busybox --install -s /bin\n\
            mount -t devtmpfs dev /dev\n\
            mount -t sysfs sys /sys\n\
            exec >/dev/console 2>&1\n"
            .to_owned();
        let mut initrd = NewcBuilder::new();
        for directory in ["bin", "dev", "sys"] {
            initrd.directory(directory, 0o755, Owner::ROOT).unwrap();
        }
        let mut file = |path: &str, content: Bytes| {
            initrd.file(path, 0o755, Owner::ROOT, content).unwrap();
        };
        file("bin/busybox", self.file("usr/bin/busybox"));
        for module in modules {
            let name = module.rsplit('/').next().unwrap();
            init.extend(["insmod /", name, "\n"]);
            file(name, self.module(module));
        }
        init += script;
        init += "poweroff -f\n";
        file("init", init.into());
        let parts = UkiParts {
            stub: &self.file(Self::STUB),
            kernel: &self.kernel(),
            initrd: &initrd.finish(),
            cmdline: Self::CMDLINE,
            uname: "6.12.0-test",
            optional: OptionalSections::default(),
        };
        encode_uki(&parts).unwrap().to_bytes()
    }

    /// The file `name` as we see it.
    pub(crate) fn outside(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The file `name` as the programs see it.
    pub(crate) fn inside(&self, name: &str) -> String {
        let path = self.outside(name);
        let below = path.strip_prefix(&self.root).unwrap();
        Path::new("/").join(below).to_str().unwrap().to_owned()
    }

    /// Writes the file `name`; the answer is how the programs see it.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.outside(name), bytes).unwrap();
        self.inside(name)
    }

    /// A program that is not started yet.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("chroot");
        command
            .arg(&self.root)
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    /// Whether a program ends well, and everything that it prints.
    pub(crate) fn try_run(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let output = self.command(program).args(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// The serial console of a guest that QEMU boots with these arguments and
    /// that powers itself off.
    pub(crate) fn boot(&self, arguments: &[&str]) -> String {
        let serial = format!("file:{}", self.inside("console"));
        let options: &[&str] = &["-no-reboot", "-serial", &serial];
        let all = [&QEMU[..], &MACHINE, &MEMORY, options, arguments].concat();
        let (well, text) = self.try_run("timeout", &all);
        let console = fs::read(self.outside("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).replace('\r', "");
        assert!(well, "{text}\n{console}");
        console
    }

    /// Whether a guest of QEMU with IGVM files goes by itself within `seconds`,
    /// its serial console, and what QEMU says.
    pub(crate) fn boot_igvm(&self, seconds: u64, arguments: &[&str]) -> (bool, String, String) {
        let _ = fs::remove_file(self.outside("console"));
        let serial = format!("file:{}", self.inside("console"));
        let seconds = seconds.to_string();
        let program: &[&str] = &[&seconds, "qemu-igvm"];
        let options: &[&str] = &["-no-reboot", "-serial", &serial];
        let all = [program, &MACHINE, options, arguments].concat();
        let (well, text) = self.try_run("timeout", &all);
        let console = fs::read(self.outside("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).replace('\r', "");
        (well, console, text)
    }

    /// The serial console of a guest up to the first of `words`, or to the
    /// guest's end.
    pub(crate) fn console_until(&self, arguments: &[&str], words: &[&str]) -> String {
        let mut guest = self
            .command("timeout")
            .args(QEMU)
            .args(MACHINE)
            .args(MEMORY)
            .args(["-no-reboot", "-serial", "stdio"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut console = String::new();
        let mut output = guest.stdout.take().unwrap();
        let mut buffer = [0; 4096];
        while !words.iter().any(|word| console.contains(word)) {
            let count = output.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            console += &String::from_utf8_lossy(&buffer[..count]);
        }
        // It passes this signal on.
        let _ = Command::new("kill").arg(guest.id().to_string()).status();
        guest.wait().unwrap();
        console
    }

    /// What a program prints. It must end well.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let (well, text) = self.try_run(program, arguments);
        assert!(well, "{program} {arguments:?}: {text}");
        text
    }
}

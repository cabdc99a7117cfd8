//! QEMU, and what of the machine it needs.

use std::env;
use std::fmt;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use assay_crds::v1alpha1::TeeType;
use assay_launcher::plan::Accelerator;
use clap::ValueEnum;

/// What QEMU has that starts guests from IGVM files.
const IGVM_OBJECT: &str = "igvm-cfg";

/// What runs a simulated guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Accel {
    /// QEMU itself: on any machine, slowly
    Tcg,
    /// The kernel, through /dev/kvm
    Kvm,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcg => "TCG",
            Self::Kvm => "KVM",
        })
    }
}

impl From<Accel> for Accelerator {
    fn from(accel: Accel) -> Self {
        match accel {
            Accel::Tcg => Self::Tcg,
            Accel::Kvm => Self::Kvm,
        }
    }
}

/// The program, by path or by name in PATH.
pub(super) fn find(program: &Path) -> Result<PathBuf> {
    let install = "install it (Debian, Ubuntu: apt install qemu-system-x86; Fedora: dnf install \
                   qemu-system-x86-core), or name it with --qemu";
    if program.components().count() > 1 {
        ensure!(
            program.is_file(),
            "there is no QEMU at {}; {install}",
            program.display()
        );
        return Ok(program.to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|directory| directory.join(program));
    let mut found = found.filter(|file| file.is_file());
    found
        .next()
        .with_context(|| format!("{} is not in PATH; {install}", program.display()))
}

/// Checks that this machine can run a guest of the TEE.
pub(super) fn check_machine(tee: TeeType, accel: Accel) -> Result<()> {
    if tee == TeeType::Snp && !Path::new("/dev/sev").exists() {
        bail!(
            "spec.machine.tee is SNP, and this machine has no /dev/sev; run it on an SNP host, or \
             say SimulatedSNP there and in spec.tees of the AttestationPolicy, which protects \
             nothing"
        );
    }
    if tee == TeeType::Snp || accel == Accel::Kvm {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        opened.context(
            "cannot use /dev/kvm; load kvm_amd or kvm_intel, and join the group that owns it",
        )?;
    }
    Ok(())
}

/// Checks that QEMU starts guests from IGVM files: only builds with libigvm have the
/// object.
pub(super) fn check_igvm(program: &Path) -> Result<()> {
    let objects = Command::new(program)
        .args(["-object", "help"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let objects = String::from_utf8_lossy(&objects.stdout);
    ensure!(
        objects.lines().any(|line| line.trim() == IGVM_OBJECT),
        "spec.machine.boot is IGVM, and {} starts no guest from an IGVM file (`-object help` has \
         no {IGVM_OBJECT}): name QEMU 10.1 or later built with libigvm with --qemu, such as the \
         launcher image's /usr/bin/qemu-system-x86_64, or say boot: DirectKernel",
        program.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_says_how_to_get_it() {
        for program in ["assay-no-such-qemu", "/nonexistent/qemu"] {
            let error = find(Path::new(program)).unwrap_err().to_string();
            assert!(error.contains(program), "{error}");
            assert!(error.contains("apt install qemu-system-x86"), "{error}");
        }
        assert!(find(Path::new("sh")).unwrap().is_absolute());
    }
}

//! Programs that come as Debian packages of the machine itself: they touch the
//! kernel or are the standard tool, so the distribution's build is right.

use crate::command;
use crate::progress::say;
use anyhow::{Context, Result, bail};
use std::process::Command;

/// A command and the Debian package that brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Name of the command.
    pub command: &'static str,
    /// Name of the package.
    pub package: &'static str,
}

const fn tool(command: &'static str, package: &'static str) -> Tool {
    Tool { command, package }
}

/// What a running cluster calls.
pub const CLUSTER: &[Tool] = &[
    tool("runc", "runc"),
    tool("nft", "nftables"),
    tool("ip", "iproute2"),
    tool("conntrack", "conntrack"),
    tool("setsid", "util-linux"),
    tool("umount", "mount"),
];

/// What packing Debian's packages into images calls.
pub const PACKING: &[Tool] = &[tool("depmod", "kmod"), tool("dpkg-deb", "dpkg")];

/// What compiles the C code of our programs' dependencies.
pub const COMPILING: &[Tool] = &[tool("musl-gcc", "musl-tools")];

/// What benchmarks compare with.
pub const PEERS: &[Tool] = &[tool("openssl", "openssl")];

/// Installs the packages of the tools that are missing.
///
/// # Errors
/// When something is missing and this process may not install it, or when
/// apt-get fails; the message says what to run.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools
        .iter()
        .filter(|tool| command::find(tool.command).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let commands = missing
        .iter()
        .map(|tool| tool.command)
        .collect::<Vec<_>>()
        .join(", ");
    let packages = missing.iter().map(|tool| tool.package).collect::<Vec<_>>();
    install(&packages).with_context(|| format!("provide the missing command(s) {commands}"))
}

/// Installs packages of the machine's own distribution.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let remedy = format!(
        "apt-get install --no-install-recommends {}",
        packages.join(" ")
    );
    if command::find("apt-get").is_none() {
        bail!(
            "apt-get is not here; install by other means: {}",
            packages.join(" ")
        );
    }
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root; run: sudo {remedy}");
    }
    say(format!(
        "installing Debian packages: {}",
        packages.join(" ")
    ));
    let run = |args: &[&str]| -> Result<()> {
        let mut apt = Command::new("apt-get");
        apt.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        command::output(&mut apt).map(drop)
    };
    run(&["update", "-qq"]).context("refresh the package index")?;
    let mut args = vec!["install", "-y", "-qq", "--no-install-recommends"];
    args.extend(packages);
    run(&args).with_context(|| format!("try by hand: {remedy}"))
}

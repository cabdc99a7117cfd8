//! What the cluster changes on the machine outside its own directory: the
//! bridge, control groups, kernel parameters, nft tables, mounts. And the way
//! back, with a comparison that says what was left.

use crate::command;
use crate::layout::{BRIDGE, CGROUP, HOST_ADDRESS, Layout, POD_CIDR};
use crate::process;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Kernel parameters that the cluster's programs set (the kubelet the first
/// five), and that the bridge needs (the last two).
const KERNEL_PARAMETERS: &[&str] = &[
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/ip_forward",
    "net/bridge/bridge-nf-call-iptables",
];

/// nft tables that kube-proxy and the portmap plugin create.
const NFT_TABLES: &[(&str, &str)] = &[
    ("ip", "kube-proxy"),
    ("ip6", "kube-proxy"),
    ("inet", "cni_hostport"),
];

/// Paths outside the state directory that the programs insist on. Removed when
/// they were not there before.
const FIXED_PATHS: &[&str] = &[
    "/run/containerd",
    "/run/nri",
    "/var/lib/cni",
    "/var/lib/kubelet",
    "/var/log/containers",
    "/var/log/pods",
];

/// The state of the machine, as far as a cluster changes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// Kernel parameters with their values.
    pub kernel_parameters: BTreeMap<String, String>,
    /// Names of network interfaces.
    pub interfaces: BTreeSet<String>,
    /// nft tables, as `family name`.
    pub nft_tables: BTreeSet<String>,
    /// Mount points of a cluster: below its directory or of a kind it makes.
    pub mounts: BTreeSet<String>,
    /// Control groups directly below a hierarchy's root.
    pub cgroups: BTreeSet<String>,
    /// Those of [`FIXED_PATHS`] that exist.
    pub paths: BTreeSet<String>,
    /// Processes of pods, as `pid name`.
    pub processes: BTreeSet<String>,
}

impl Footprint {
    /// Looks at the machine.
    pub fn observe(layout: &Layout) -> Result<Self> {
        let kernel_parameters = KERNEL_PARAMETERS
            .iter()
            .filter_map(|name| {
                let value = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
                Some(((*name).to_owned(), value.trim().to_owned()))
            })
            .collect();
        let interfaces = names_in(Path::new("/sys/class/net"));
        let tables = command::output(&mut command::with_args("nft", ["list", "tables"]))
            .context("list nft tables")?;
        let nft_tables = String::from_utf8_lossy(&tables)
            .lines()
            .filter_map(|line| line.strip_prefix("table "))
            .map(str::to_owned)
            .collect();
        let roots = [
            layout.root(),
            Path::new("/run/netns"),
            Path::new("/run/containerd"),
        ];
        let mounts = mount_points()?
            .into_iter()
            .filter(|mount| roots.iter().any(|root| mount.starts_with(root)))
            .map(|mount| mount.display().to_string())
            .collect();
        let hierarchies = parse_cgroups(&mountinfo()?);
        let cgroups = hierarchies
            .first
            .iter()
            .chain(&hierarchies.second)
            .filter(|root| root.join(CGROUP).is_dir())
            .map(|root| root.join(CGROUP).display().to_string())
            .collect();
        let paths = FIXED_PATHS
            .iter()
            .filter(|path| Path::new(path).exists())
            .map(|&path| path.to_owned())
            .collect();
        let processes = process::strays(layout.root(), CGROUP)
            .into_iter()
            .map(|stray| format!("{} {}", stray.pid, stray.name))
            .collect();
        Ok(Self {
            kernel_parameters,
            interfaces,
            nft_tables,
            mounts,
            cgroups,
            paths,
            processes,
        })
    }

    /// What is there now and was not `before`, one sentence each.
    pub fn left_since(&self, before: &Self) -> Vec<String> {
        let sets = [
            ("network interface", &self.interfaces, &before.interfaces),
            ("nft table", &self.nft_tables, &before.nft_tables),
            ("mount", &self.mounts, &before.mounts),
            ("control group", &self.cgroups, &before.cgroups),
            ("path", &self.paths, &before.paths),
            ("process", &self.processes, &before.processes),
        ];
        let mut left: Vec<String> = sets
            .into_iter()
            .flat_map(|(kind, now, then)| {
                now.difference(then)
                    .map(move |name| format!("{kind} {name}"))
            })
            .collect();
        for (name, value) in &self.kernel_parameters {
            if let Some(then) = before.kernel_parameters.get(name)
                && then != value
            {
                left.push(format!("kernel parameter {name} is {value} and was {then}"));
            }
        }
        left
    }
}

/// Makes the bridge, lets the kernel forward, and makes the control groups.
pub(crate) fn prepare() -> Result<()> {
    if !Path::new("/sys/class/net").join(BRIDGE).exists() {
        // An explicit hardware address, or the kernel changes it with each pod.
        let address = "0a:58:0a:f4:00:01";
        ip(&[
            "link", "add", "name", BRIDGE, "address", address, "type", "bridge",
        ])?;
    }
    let prefix = POD_CIDR.split_once('/').map_or("24", |(_, prefix)| prefix);
    ip(&[
        "address",
        "replace",
        &format!("{HOST_ADDRESS}/{prefix}"),
        "dev",
        BRIDGE,
    ])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    set_kernel_parameter("net/ipv4/ip_forward", "1")?;
    // Answers between pods of one bridge must pass the translation back. Absent
    // where br_netfilter is not there; then kube-proxy's own rules must do.
    let bridged = "net/bridge/bridge-nf-call-iptables";
    if Path::new("/proc/sys").join(bridged).exists() {
        set_kernel_parameter(bridged, "1")?;
    }
    let hierarchies = parse_cgroups(&mountinfo()?);
    let used = if hierarchies.first.is_empty() {
        hierarchies.second
    } else {
        hierarchies.first
    };
    for root in used {
        let group = root.join(CGROUP);
        fs::create_dir_all(&group)
            .with_context(|| format!("create the control group {}", group.display()))?;
        // Version 1: a group without processors and memory nodes holds nobody.
        for file in ["cpuset.mems", "cpuset.cpus"] {
            if let Ok(value) = fs::read_to_string(root.join(file)) {
                fs::write(group.join(file), value.trim())
                    .with_context(|| format!("set {file} of {}", group.display()))?;
            }
        }
    }
    Ok(())
}

/// Undoes what [`prepare`] and the cluster's programs did. Every step is tried;
/// what fails shows in the comparison afterwards.
pub(crate) fn restore(layout: &Layout, before: &Footprint) -> Result<()> {
    unmount_below(layout.root())?;
    for interface in names_in(&Path::new("/sys/class/net").join(BRIDGE).join("brif")) {
        attempt(ip(&["link", "delete", &interface]));
    }
    if !before.interfaces.contains(BRIDGE) && Path::new("/sys/class/net").join(BRIDGE).exists() {
        attempt(ip(&["link", "delete", BRIDGE]));
    }
    let now = Footprint::observe(layout)?;
    for (family, name) in NFT_TABLES {
        let table = format!("{family} {name}");
        if now.nft_tables.contains(&table) && !before.nft_tables.contains(&table) {
            let mut nft = command::with_args("nft", ["delete", "table", family, name]);
            attempt(command::output(&mut nft).map(drop));
        }
    }
    for group in &now.cgroups {
        attempt(remove_cgroup(Path::new(group)));
    }
    for path in now.paths.difference(&before.paths) {
        attempt(crate::cache::remove_tree(Path::new(path)));
    }
    for (name, value) in &before.kernel_parameters {
        if now.kernel_parameters.get(name) != Some(value) {
            attempt(set_kernel_parameter(name, value));
        }
    }
    Ok(())
}

/// Unmounts everything below `root`, the innermost first.
fn unmount_below(root: &Path) -> Result<()> {
    let mut mounts: Vec<PathBuf> = mount_points()?
        .into_iter()
        .filter(|mount| mount.starts_with(root))
        .collect();
    mounts.reverse();
    for mount in mounts {
        let mut umount = command::with_args("umount", ["--lazy"]);
        attempt(command::output(umount.arg(&mount)).map(drop));
    }
    Ok(())
}

fn attempt(result: Result<()>) {
    if let Err(error) = result {
        crate::progress::say(format!("warning: {error:#}"));
    }
}

fn ip(args: &[&str]) -> Result<()> {
    command::output(&mut command::with_args("ip", args)).map(drop)
}

fn set_kernel_parameter(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value).with_context(|| format!("set kernel parameter {name} to {value}"))
}

fn mountinfo() -> Result<String> {
    fs::read_to_string("/proc/self/mountinfo").context("read the mounts")
}

/// Mount points in the order of mounting (proc_pid_mountinfo(5)). Spaces and
/// the like are escaped there; no path of ours has any.
fn mount_points() -> Result<Vec<PathBuf>> {
    let text = mountinfo()?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect())
}

/// Roots of the control group hierarchies by version. A machine with both uses
/// version 1; runc then still makes empty groups in version 2.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchies {
    first: Vec<PathBuf>,
    second: Vec<PathBuf>,
}

fn parse_cgroups(mountinfo: &str) -> Hierarchies {
    let of_type = |wanted: &str| -> Vec<PathBuf> {
        mountinfo
            .lines()
            .filter_map(|line| {
                let (left, right) = line.split_once(" - ")?;
                (right.split(' ').next()? == wanted)
                    .then(|| left.split(' ').nth(4).map(PathBuf::from))?
            })
            .collect()
    };
    Hierarchies {
        first: of_type("cgroup"),
        second: of_type("cgroup2"),
    }
}

/// A control group goes by rmdir, its children first.
fn remove_cgroup(group: &Path) -> Result<()> {
    for name in names_in(group) {
        let child = group.join(name);
        if child.is_dir() {
            remove_cgroup(&child)?;
        }
    }
    fs::remove_dir(group).with_context(|| format!("remove the control group {}", group.display()))
}

/// Names in a directory; none when it is absent.
fn names_in(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return BTreeSet::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_or_changed_is_left() {
        let before = Footprint {
            interfaces: BTreeSet::from(["lo".to_owned()]),
            kernel_parameters: BTreeMap::from([("kernel/panic".to_owned(), "0".to_owned())]),
            ..Footprint::default()
        };
        assert_eq!(before.left_since(&before), Vec::<String>::new());
        let mut after = before.clone();
        after.interfaces.insert("cni0".to_owned());
        after
            .kernel_parameters
            .insert("kernel/panic".to_owned(), "10".to_owned());
        assert_eq!(
            after.left_since(&before),
            [
                "network interface cni0",
                "kernel parameter kernel/panic is 10 and was 0"
            ]
        );
        // Something that went away is not ours to explain.
        assert_eq!(before.left_since(&after).len(), 1);
    }

    #[test]
    fn hierarchies_are_told_apart() {
        let text = "30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            31 25 0:27 / /sys/fs/cgroup/unified rw shared:1 - cgroup2 cgroup2 rw\n\
            32 25 0:28 / /tmp rw - tmpfs cgroup rw\n";
        assert_eq!(
            parse_cgroups(text),
            Hierarchies {
                first: vec![PathBuf::from("/sys/fs/cgroup/cpu")],
                second: vec![PathBuf::from("/sys/fs/cgroup/unified")],
            }
        );
    }
}

//! The boot plan: which steps, in which order. Total functions of valid values.

use std::fmt::Write as _;

use assay_tee::guest_config::{INITRAMFS_ROOT, RootFs};
use assay_tee::instance::RESOURCE_ROOT;
use assay_tee::program::{DEFAULT_PATH, environment_value};

use crate::step::{Carry, Mount, MountOption, Step, VerityDisk};
use crate::validate::{ValidGuest, ValidInstance};

/// Where the workload's root file system is assembled.
pub const NEW_ROOT: &str = "/newroot";
/// Where resources are collected before the workload's root exists.
pub const RESOURCE_STAGE: &str = "/run/assay/secrets";
/// Where configfs is mounted; configfs-tsm lives below it.
pub const CONFIGFS: &str = "/sys/kernel/config";

const IMAGE: &str = "/run/assay/image";
const OVERLAY: &str = "/run/assay/overlay";
const VERITY_NAME: &str = "assay-root";

use MountOption::{NoDev, NoExec, NoSuid, ReadOnly};

fn mount(kind: &str, source: &str, target: &str, options: &[MountOption], data: &str) -> Step {
    Step::Mount(Mount {
        source: source.to_owned(),
        target: target.to_owned(),
        kind: kind.to_owned(),
        options: options.to_vec(),
        data: data.to_owned(),
        required: true,
    })
}

fn mount_if_supported(kind: &str, target: &str, options: &[MountOption]) -> Step {
    Step::Mount(Mount {
        source: kind.to_owned(),
        target: target.to_owned(),
        kind: kind.to_owned(),
        options: options.to_vec(),
        data: String::new(),
        required: false,
    })
}

/// The first steps of PID 1: the kernel's own file systems. They depend on
/// nothing, and nothing can be read or reported before them.
pub fn plan_early() -> Vec<Step> {
    vec![
        mount("proc", "proc", "/proc", &[NoSuid, NoDev, NoExec], ""),
        mount("sysfs", "sysfs", "/sys", &[NoSuid, NoDev, NoExec], ""),
        mount(
            "devtmpfs",
            "devtmpfs",
            "/dev",
            &[NoSuid, NoExec],
            "mode=0755",
        ),
        mount("tmpfs", "tmpfs", "/run", &[NoSuid, NoDev], "mode=0755"),
    ]
}

/// Kernel modules, then no more of them.
pub fn plan_platform(guest: &ValidGuest) -> Vec<Step> {
    let mut steps: Vec<Step> = guest
        .config
        .modules
        .iter()
        .map(|path| Step::LoadModule { path: path.clone() })
        .collect();
    // From here on not even root loads code into the kernel.
    steps.push(Step::SetKernel {
        path: "kernel/modules_disabled".to_owned(),
        value: "1".to_owned(),
    });
    steps.push(mount_if_supported(
        "configfs",
        CONFIGFS,
        &[NoSuid, NoDev, NoExec],
    ));
    steps
}

/// Network and root file system.
pub fn plan_guest(guest: &ValidGuest, instance: &ValidInstance) -> Vec<Step> {
    let directory = |path: String| Step::MakeDirectory { path, mode: 0o755 };
    let mut steps = vec![
        Step::StartLoopback,
        Step::SetHostname {
            name: instance.hostname.clone(),
        },
        Step::ConfigureInterface {
            address: instance.address,
            prefix: instance.prefix,
            gateway: instance.gateway,
        },
        // Containers bind low ports without privilege.
        Step::SetKernel {
            path: "net/ipv4/ip_unprivileged_port_start".to_owned(),
            value: "0".to_owned(),
        },
    ];
    steps.extend(plan_image(&guest.config.root));
    steps.extend([
        mount("tmpfs", "tmpfs", OVERLAY, &[NoDev], "mode=0755"),
        directory(format!("{OVERLAY}/upper")),
        directory(format!("{OVERLAY}/work")),
        mount(
            "overlay",
            "overlay",
            NEW_ROOT,
            &[NoDev],
            &format!("lowerdir={IMAGE},upperdir={OVERLAY}/upper,workdir={OVERLAY}/work"),
        ),
        mount(
            "tmpfs",
            "tmpfs",
            RESOURCE_STAGE,
            &[NoSuid, NoDev, NoExec],
            "mode=0755,size=64m",
        ),
    ]);
    steps
}

/// The image's own files at [`IMAGE`], which nothing can write to.
fn plan_image(root: &RootFs) -> Vec<Step> {
    match root.clone() {
        RootFs::DmVerity {
            serial,
            block_size,
            data_blocks,
            hash_start_block,
            root_hash,
            salt,
        } => vec![
            Step::OpenVerity(VerityDisk {
                name: VERITY_NAME.to_owned(),
                serial,
                block_size,
                data_blocks,
                hash_start_block,
                root_hash,
                salt,
            }),
            mount(
                "erofs",
                &format!("/dev/mapper/{VERITY_NAME}"),
                IMAGE,
                &[ReadOnly, NoDev],
                "",
            ),
        ],
        // The initramfs is no mount that an overlay can be laid over: some
        // kernels refuse it.
        RootFs::Initramfs => vec![Step::ShowReadOnly {
            from: INITRAMFS_ROOT.to_owned(),
            to: IMAGE.to_owned(),
        }],
    }
}

/// What the workload's own process does, as the first process of its PID, mount
/// and IPC namespaces. Nothing of the image's own `/run` and `/tmp` is covered:
/// images prepare directories there, and the overlay takes writes.
pub fn plan_container(guest: &ValidGuest, instance: &ValidInstance) -> Vec<Step> {
    let process = &guest.config.process;
    let closed = [NoSuid, NoDev, NoExec];
    let mut steps = vec![Step::EnterRoot {
        path: NEW_ROOT.to_owned(),
        detach: ["/proc", "/sys", "/dev", "/run"]
            .map(str::to_owned)
            .to_vec(),
        carry: vec![Carry {
            from: RESOURCE_STAGE.to_owned(),
            to: RESOURCE_ROOT.to_owned(),
        }],
    }];
    // First of all, as the null device covers files that are hidden below.
    steps.push(mount(
        "tmpfs",
        "tmpfs",
        "/dev",
        &[NoSuid, NoExec],
        "mode=0755,size=64k",
    ));
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ] {
        steps.push(Step::MakeDevice {
            path: format!("/dev/{name}"),
            major,
            minor,
        });
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        steps.push(Step::MakeSymlink {
            path: format!("/dev/{name}"),
            target: target.to_owned(),
        });
    }
    steps.push(mount(
        "devpts",
        "devpts",
        "/dev/pts",
        &[NoSuid, NoExec],
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    ));
    steps.push(mount(
        "tmpfs",
        "shm",
        "/dev/shm",
        &closed,
        "mode=1777,size=64m",
    ));
    steps.push(mount_if_supported("mqueue", "/dev/mqueue", &closed));
    steps.push(mount("proc", "proc", "/proc", &closed, ""));
    // What the OCI runtime specification's default container masks: settings of
    // the one kernel, and what tells about its memory.
    for path in ["bus", "fs", "irq", "sys", "sysrq-trigger"] {
        steps.push(Step::Protect {
            path: format!("/proc/{path}"),
        });
    }
    for path in [
        "acpi",
        "interrupts",
        "kcore",
        "keys",
        "latency_stats",
        "sched_debug",
        "scsi",
        "timer_list",
        "timer_stats",
    ] {
        steps.push(Step::Hide {
            path: format!("/proc/{path}"),
        });
    }
    steps.push(mount(
        "sysfs",
        "sysfs",
        "/sys",
        &[ReadOnly, NoSuid, NoDev, NoExec],
        "",
    ));
    // Instance data and ACPI tables; evidence is the agent's to request.
    for path in ["firmware", "kernel/config", "devices/virtual/powercap"] {
        steps.push(Step::Hide {
            path: format!("/sys/{path}"),
        });
    }
    steps.push(mount_if_supported(
        "cgroup2",
        "/sys/fs/cgroup",
        &[ReadOnly, NoSuid, NoDev, NoExec],
    ));

    steps.push(Step::MakeDirectory {
        path: "/tmp".to_owned(),
        mode: 0o1777,
    });

    steps.push(Step::MakeDirectory {
        path: "/etc".to_owned(),
        mode: 0o755,
    });
    for (name, content) in [
        ("hostname", format!("{}\n", instance.hostname)),
        ("hosts", hosts_file(instance)),
        ("resolv.conf", resolver_file(instance)),
    ] {
        steps.push(Step::WriteFile {
            path: format!("/etc/{name}"),
            content,
        });
    }

    // After everything that is written above.
    let hardening = &guest.config.hardening;
    if hardening.read_only_root || hardening.no_exec {
        let writable = hardening.writable.iter();
        steps.extend(writable.map(|path| Step::KeepWritable {
            path: path.clone(),
            no_exec: hardening.no_exec,
        }));
    }
    if hardening.read_only_root {
        steps.push(Step::SealRoot);
    }

    steps.push(Step::DropPrivileges {
        uid: process.uid,
        gid: process.gid,
        additional_gids: process.additional_gids.clone(),
    });
    steps.push(Step::Exec {
        args: process.args.clone(),
        env: environment(guest, instance),
        cwd: process.cwd.clone(),
    });
    steps
}

fn hosts_file(instance: &ValidInstance) -> String {
    let (address, hostname) = (instance.address, &instance.hostname);
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{hostname}\n"
    )
}

fn resolver_file(instance: &ValidInstance) -> String {
    instance
        .nameservers
        .iter()
        .fold(String::new(), |mut file, server| {
            // Writing to a string cannot fail.
            let _ = writeln!(file, "nameserver {server}");
            file
        })
}

/// The image's environment, completed as container runtimes do. Without a user
/// database in the agent, an unset `HOME` is root's or `/`.
fn environment(guest: &ValidGuest, instance: &ValidInstance) -> Vec<String> {
    let process = &guest.config.process;
    let mut env = process.env.clone();
    let home = if process.uid == 0 { "/root" } else { "/" };
    for (name, value) in [
        ("PATH", DEFAULT_PATH),
        ("HOSTNAME", instance.hostname.as_str()),
        ("HOME", home),
    ] {
        if environment_value(&env, name).is_none() {
            env.push(format!("{name}={value}"));
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::tests::{CMDLINE, good_guest, good_instance};
    use crate::validate::{validate_guest, validate_instance};

    fn guest() -> ValidGuest {
        validate_guest(good_guest(), CMDLINE.as_bytes()).expect("valid")
    }

    fn instance() -> ValidInstance {
        validate_instance(good_instance().encode().expect("json")).expect("valid")
    }

    fn position(steps: &[Step], matches: impl Fn(&Step) -> bool) -> usize {
        steps.iter().position(matches).expect("step is planned")
    }

    fn mounts(steps: &[Step]) -> Vec<&Mount> {
        steps
            .iter()
            .filter_map(|s| {
                if let Step::Mount(m) = s {
                    Some(m)
                } else {
                    None
                }
            })
            .collect()
    }

    #[test]
    fn the_root_is_sealed_after_the_last_write_and_before_privileges_go() {
        let steps = plan_container(&guest(), &instance());
        let sealed = position(&steps, |s| *s == Step::SealRoot);
        let kept: Vec<_> = steps
            .iter()
            .enumerate()
            .filter(|(_, s)| matches!(s, Step::KeepWritable { no_exec: true, .. }))
            .map(|(at, _)| at)
            .collect();
        assert_eq!(kept.len(), 2);
        assert!(kept.iter().all(|at| *at < sealed));
        let last_write = steps
            .iter()
            .rposition(|s| matches!(s, Step::WriteFile { .. } | Step::MakeDirectory { .. }));
        assert!(last_write.expect("files are written") < kept[0]);
        assert!(sealed < position(&steps, |s| matches!(s, Step::DropPrivileges { .. })));
    }

    #[test]
    fn each_hardening_of_the_root_is_its_own() {
        let plan = |read_only_root, no_exec| {
            let mut guest = guest();
            guest.config.hardening.read_only_root = read_only_root;
            guest.config.hardening.no_exec = no_exec;
            let steps = plan_container(&guest, &instance());
            let kept = |flag| {
                let keep =
                    |s: &&Step| matches!(s, Step::KeepWritable { no_exec, .. } if *no_exec == flag);
                steps.iter().filter(keep).count()
            };
            (kept(true), kept(false), steps.contains(&Step::SealRoot))
        };
        assert_eq!(plan(true, true), (2, 0, true));
        assert_eq!(plan(true, false), (0, 2, true));
        assert_eq!(plan(false, true), (2, 0, false));
        assert_eq!(plan(false, false), (0, 0, false));
    }

    #[test]
    fn modules_load_in_order_and_then_never_again() {
        let mut guest = guest();
        guest.config.modules = vec!["/b.ko.xz".to_owned(), "/a.ko.xz".to_owned()];
        let steps = plan_platform(&guest);
        assert_eq!(
            steps[..3],
            [
                Step::LoadModule {
                    path: "/b.ko.xz".to_owned()
                },
                Step::LoadModule {
                    path: "/a.ko.xz".to_owned()
                },
                Step::SetKernel {
                    path: "kernel/modules_disabled".to_owned(),
                    value: "1".to_owned()
                },
            ]
        );
        assert!(
            !steps[3..]
                .iter()
                .any(|s| matches!(s, Step::LoadModule { .. }))
        );
    }

    #[test]
    fn the_image_is_read_only_and_only_through_verity() {
        let steps = plan_guest(&guest(), &instance());
        let verity = position(&steps, |s| matches!(s, Step::OpenVerity(_)));
        let image = position(&steps, |s| matches!(s, Step::Mount(m) if m.kind == "erofs"));
        assert!(verity < image);
        let Step::Mount(image) = &steps[image] else {
            panic!("a mount")
        };
        assert_eq!(image.source, "/dev/mapper/assay-root");
        assert!(image.options.contains(&ReadOnly));
        // Nothing but the verity device and memory is ever mounted.
        for mount in mounts(&steps) {
            assert!(
                matches!(mount.kind.as_str(), "erofs" | "tmpfs" | "overlay"),
                "{}",
                mount.kind
            );
        }
    }

    #[test]
    fn without_a_disk_the_image_is_the_measured_directory() {
        let mut guest = guest();
        let on_disk = plan_guest(&guest, &instance());
        guest.config.root = RootFs::Initramfs;
        let steps = plan_guest(&guest, &instance());
        let shown = Step::ShowReadOnly {
            from: "/rootfs".to_owned(),
            to: "/run/assay/image".to_owned(),
        };
        let at = position(&steps, |s| *s == shown);
        let without = |steps: &[Step], of_image: &dyn Fn(&Step) -> bool| -> Vec<Step> {
            steps.iter().filter(|s| !of_image(s)).cloned().collect()
        };
        // Nothing else differs, and no disk is opened.
        assert_eq!(
            without(&steps, &|s| *s == shown),
            without(&on_disk, &|s| {
                matches!(s, Step::OpenVerity(_)) || matches!(s, Step::Mount(m) if m.kind == "erofs")
            })
        );
        let overlay = |s: &Step| matches!(s, Step::Mount(m) if m.kind == "overlay");
        assert!(at < position(&steps, overlay));
    }

    #[test]
    fn devices_exist_only_where_the_agent_made_them() {
        for steps in [
            plan_guest(&guest(), &instance()),
            plan_container(&guest(), &instance()),
        ] {
            for mount in mounts(&steps) {
                let made_here = matches!(mount.target.as_str(), "/dev" | "/dev/pts");
                assert_eq!(
                    !made_here,
                    mount.options.contains(&NoDev),
                    "{}",
                    mount.target
                );
            }
        }
    }

    #[test]
    fn privileges_go_last_and_the_workload_after_them() {
        let steps = plan_container(&guest(), &instance());
        assert!(matches!(steps.first(), Some(Step::EnterRoot { .. })));
        let [.., drop, exec] = steps.as_slice() else {
            panic!("too short")
        };
        assert_eq!(
            *drop,
            Step::DropPrivileges {
                uid: 101,
                gid: 102,
                additional_gids: vec![103]
            }
        );
        assert_eq!(
            *exec,
            Step::Exec {
                args: vec!["nginx".to_owned(), "-g".to_owned()],
                env: vec![
                    "PATH=/usr/sbin:/usr/bin".to_owned(),
                    "HOSTNAME=web-1".to_owned(),
                    "HOME=/".to_owned()
                ],
                cwd: "/srv".to_owned(),
            }
        );
    }

    #[test]
    fn resources_land_on_their_own_closed_file_system() {
        let guest_steps = plan_guest(&guest(), &instance());
        let stage = mounts(&guest_steps)
            .into_iter()
            .find(|m| m.target == RESOURCE_STAGE);
        let stage = stage.expect("mounted");
        assert_eq!(stage.kind, "tmpfs");
        for option in [NoSuid, NoDev, NoExec] {
            assert!(stage.options.contains(&option), "{option:?}");
        }
        let container = plan_container(&guest(), &instance());
        let Some(Step::EnterRoot { carry, .. }) = container.first() else {
            panic!("root")
        };
        assert_eq!(
            *carry,
            [Carry {
                from: RESOURCE_STAGE.to_owned(),
                to: "/run/secrets".to_owned()
            }]
        );
        assert!(
            !mounts(&container)
                .iter()
                .any(|m| m.target.starts_with("/run"))
        );
    }

    #[test]
    fn the_kernel_cannot_be_set_from_inside() {
        let steps = plan_container(&guest(), &instance());
        let proc = position(&steps, |s| matches!(s, Step::Mount(m) if m.kind == "proc"));
        let sys = position(&steps, |s| {
            *s == Step::Protect {
                path: "/proc/sys".to_owned(),
            }
        });
        assert!(proc < sys);
        let sysfs = mounts(&steps)
            .into_iter()
            .find(|m| m.kind == "sysfs")
            .expect("mounted");
        assert!(sysfs.options.contains(&ReadOnly));
    }

    #[test]
    fn files_are_hidden_behind_a_device_that_exists() {
        let steps = plan_container(&guest(), &instance());
        let null = position(
            &steps,
            |s| matches!(s, Step::MakeDevice { path, .. } if path == "/dev/null"),
        );
        let hidden = position(&steps, |s| matches!(s, Step::Hide { .. }));
        assert!(null < hidden);
    }

    #[test]
    fn files_say_what_the_instance_says() {
        let steps = plan_container(&guest(), &instance());
        let content = |name: &str| {
            steps.iter().find_map(|s| match s {
                Step::WriteFile { path, content } if path == name => Some(content.as_str()),
                _ => None,
            })
        };
        assert_eq!(content("/etc/hostname"), Some("web-1\n"));
        assert_eq!(content("/etc/resolv.conf"), Some("nameserver 10.0.2.3\n"));
        assert_eq!(
            content("/etc/hosts"),
            Some(
                "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                 10.0.2.15\tweb-1\n"
            )
        );
    }

    #[test]
    fn a_plan_survives_the_pipe() {
        let steps = plan_container(&guest(), &instance());
        let json = serde_json::to_vec(&steps).expect("json");
        assert_eq!(
            serde_json::from_slice::<Vec<Step>>(&json).expect("steps"),
            steps
        );
    }
}

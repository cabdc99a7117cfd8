//! Carrying out steps. No decision belongs here: what a step means is in
//! [`crate::step`], when it comes is in [`crate::plan`].

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use assay_tee::program::exec_candidates;
use rustix::fs::{CWD, FileType, Gid, Mode, Uid, makedev};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::devices::{self, DeviceError};
use crate::netlink::{self, Request};
use crate::step::{Carry, Mount, MountOption, Step, VerityDisk};
use crate::verity::{self, VerityError};

/// A step failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {attempt}")]
pub struct StepError {
    attempt: String,
    #[source]
    source: StepCause,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepCause {
    /// The kernel refused.
    #[error(transparent)]
    System(#[from] io::Error),
    /// A device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The verity device cannot be made.
    #[error(transparent)]
    Verity(#[from] VerityError),
}

impl From<Errno> for StepCause {
    fn from(errno: Errno) -> Self {
        Self::System(errno.into())
    }
}

/// What a root workload may still do: the set of OCI runtimes, without
/// `CAP_MKNOD`. There is no device cgroup here, and a device node would reach
/// the disks and the processor's guest device.
pub const ROOT_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// Carries out `steps` in order.
///
/// # Errors
/// The first failure; later steps are not tried.
pub fn run(steps: &[Step]) -> Result<(), StepError> {
    steps.iter().try_for_each(|step| {
        run_one(step).map_err(|source| StepError {
            attempt: attempt(step),
            source,
        })
    })
}

/// The step as an infinitive.
fn attempt(step: &Step) -> String {
    match step {
        Step::MakeDirectory { path, .. } => format!("create directory {path}"),
        Step::MakeDevice { path, .. } => format!("create device {path}"),
        Step::MakeSymlink { path, .. } => format!("create link {path}"),
        Step::WriteFile { path, .. } => format!("write {path}"),
        Step::SetKernel { path, value } => format!("set {path} to {value}"),
        Step::LoadModule { path } => format!("load module {path}"),
        Step::Mount(mount) => format!("mount {} on {}", mount.kind, mount.target),
        Step::ShowReadOnly { from, to } => format!("show {from} at {to}"),
        Step::KeepWritable { path, .. } => format!("keep {path} writable"),
        Step::SealRoot => "make the root read-only".to_owned(),
        Step::Protect { path } => format!("make {path} read-only"),
        Step::Hide { path } => format!("hide {path}"),
        Step::StartLoopback => "bring the loopback interface up".to_owned(),
        Step::ConfigureInterface { .. } => "configure the network interface".to_owned(),
        Step::SetHostname { name } => format!("set the host name to {name}"),
        Step::OpenVerity(_) => "open the root disk".to_owned(),
        Step::EnterRoot { path, .. } => format!("make {path} the root"),
        Step::DropPrivileges { uid, gid, .. } => format!("become user {uid} and group {gid}"),
        Step::Exec { args, .. } => {
            format!("run {}", args.first().map_or("nothing", String::as_str))
        }
    }
}

fn run_one(step: &Step) -> Result<(), StepCause> {
    match step {
        Step::MakeDirectory { path, mode } => {
            fs::create_dir_all(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(*mode))?;
        }
        Step::MakeDevice { path, major, minor } => {
            let mode = Mode::from_raw_mode(0o666);
            rustix::fs::mknodat(
                CWD,
                path,
                FileType::CharacterDevice,
                mode,
                makedev(*major, *minor),
            )?;
            rustix::fs::chmod(path, mode)?;
        }
        Step::MakeSymlink { path, target } => symlink(target, path)?,
        Step::WriteFile { path, content } => replace_file(Path::new(path), content)?,
        Step::SetKernel { path, value } => fs::write(Path::new("/proc/sys").join(path), value)?,
        Step::LoadModule { path } => load_module(path)?,
        Step::Mount(mount) => mount_one(mount)?,
        Step::ShowReadOnly { from, to } => show_read_only(from, to)?,
        Step::KeepWritable { path, no_exec } => keep_writable(path, *no_exec)?,
        Step::SealRoot => seal_root()?,
        Step::Protect { path } => protect(path)?,
        Step::Hide { path } => hide(path)?,
        Step::StartLoopback => {
            netlink::apply(&[Request::Up {
                interface: devices::loopback()?,
            }])?;
        }
        Step::ConfigureInterface {
            address,
            prefix,
            gateway,
        } => {
            let interface = devices::only_interface()?;
            netlink::apply(&[
                Request::Address {
                    interface,
                    address: *address,
                    prefix: *prefix,
                },
                Request::Up { interface },
                Request::DefaultRoute {
                    interface,
                    gateway: *gateway,
                },
            ])?;
        }
        Step::SetHostname { name } => rustix::system::sethostname(name.as_bytes())?,
        Step::OpenVerity(disk) => open_verity(disk)?,
        Step::EnterRoot {
            path,
            detach,
            carry,
        } => enter_root(path, detach, carry)?,
        Step::DropPrivileges {
            uid,
            gid,
            additional_gids,
        } => {
            drop_privileges(*uid, *gid, additional_gids)?;
        }
        Step::Exec { args, env, cwd } => return Err(become_program(args, env, cwd).into()),
    }
    Ok(())
}

/// Replaces rather than writes, as the name may be a link that leads elsewhere.
fn replace_file(path: &Path, content: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    io::Write::write_all(&mut file, content.as_bytes())
}

/// MODULE_INIT_COMPRESSED_FILE of finit_module(2).
const COMPRESSED: i32 = 4;

fn load_module(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    let plain = Path::new(path)
        .extension()
        .is_some_and(|extension| extension == "ko");
    let flags = if plain { 0 } else { COMPRESSED };
    match rustix::system::finit_module(&file, c"", flags) {
        // Built in or loaded already; hardware that this machine does not have.
        Ok(()) | Err(Errno::EXIST | Errno::NODEV) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn flags(options: &[MountOption]) -> MountFlags {
    options.iter().fold(MountFlags::empty(), |flags, option| {
        flags
            | match option {
                MountOption::ReadOnly => MountFlags::RDONLY,
                MountOption::NoSuid => MountFlags::NOSUID,
                MountOption::NoDev => MountFlags::NODEV,
                MountOption::NoExec => MountFlags::NOEXEC,
            }
    })
}

fn mount_one(mount: &Mount) -> io::Result<()> {
    let data = CString::new(mount.data.as_str())?;
    let data = (!mount.data.is_empty()).then_some(data.as_c_str());
    // Inside sysfs no directory can be made: a missing one means that the
    // kernel lacks what would be mounted there.
    let unsupported = |e: &io::Error| {
        !mount.required && e.raw_os_error().is_some_and(|e| UNSUPPORTED.contains(&e))
    };
    let mounted = fs::create_dir_all(&mount.target).and_then(|()| {
        let flags = flags(&mount.options);
        Ok(rustix::mount::mount(
            &mount.source,
            &mount.target,
            &mount.kind,
            flags,
            data,
        )?)
    });
    match mounted {
        Err(e) if unsupported(&e) => Ok(()),
        other => other,
    }
}

/// What the kernel says to a file system that it does not have.
const UNSUPPORTED: [i32; 4] = [libc::ENODEV, libc::ENOENT, libc::EPERM, libc::EROFS];

fn is_absent(result: &io::Result<()>) -> bool {
    result
        .as_ref()
        .is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

fn show_read_only(from: &str, to: &str) -> io::Result<()> {
    fs::create_dir_all(to)?;
    rustix::mount::mount_bind(from, to)?;
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV;
    Ok(rustix::mount::mount_remount(to, flags, c"")?)
}

fn keep_writable(path: &str, no_exec: bool) -> io::Result<()> {
    fs::create_dir_all(path)?;
    // With what is mounted below it, such as the resources below /run.
    rustix::mount::mount_bind_recursive(path, path)?;
    let mut flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    if no_exec {
        flags |= MountFlags::NOEXEC;
    }
    Ok(rustix::mount::mount_remount(path, flags, c"")?)
}

fn seal_root() -> io::Result<()> {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV;
    Ok(rustix::mount::mount_remount("/", flags, c"")?)
}

fn protect(path: &str) -> io::Result<()> {
    let bound = rustix::mount::mount_bind_recursive(path, path).map_err(Into::into);
    if is_absent(&bound) {
        return Ok(());
    }
    bound?;
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    Ok(rustix::mount::mount_remount(path, flags, c"")?)
}

fn hide(path: &str) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if metadata.is_dir() {
        let flags =
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        Ok(rustix::mount::mount(
            "tmpfs",
            path,
            "tmpfs",
            flags,
            c"size=0k,mode=0555",
        )?)
    } else {
        Ok(rustix::mount::mount_bind("/dev/null", path)?)
    }
}

fn open_verity(disk: &VerityDisk) -> Result<(), StepCause> {
    let devices = devices::root_devices(&disk.serial, disk.root_hash)?;
    let number = verity::open(disk, &devices)?;
    symlink(
        format!("../dm-{number}"),
        Path::new("/dev/mapper").join(&disk.name),
    )?;
    Ok(())
}

fn enter_root(path: &str, detach: &[String], carry: &[Carry]) -> io::Result<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    // Taken before their old mount points disappear, placed where the new
    // root's own links lead.
    let carried = carry
        .iter()
        .map(|c| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            Ok((
                rustix::mount::open_tree(CWD, &c.from, flags)?,
                c.to.as_str(),
            ))
        })
        .collect::<io::Result<Vec<(OwnedFd, &str)>>>()?;
    for mount in detach {
        rustix::mount::unmount(mount, UnmountFlags::DETACH)?;
    }
    std::env::set_current_dir(path)?;
    // The initramfs is the first mount of the system and cannot be left by
    // pivot_root(2): the new root is moved over it (as switch_root(8) does).
    rustix::mount::mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")?;
    for (tree, to) in carried {
        fs::create_dir_all(to)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS;
        rustix::mount::move_mount(tree.as_fd(), "", CWD, to, flags)?;
    }
    Ok(())
}

fn drop_privileges(uid: u32, gid: u32, additional_gids: &[u32]) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    // The workload may open its own output again, as images do that log to
    // /dev/stdout.
    for fd in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
        rustix::fs::fchown(fd, Some(user), Some(group))?;
    }
    let kept = if uid == 0 {
        ROOT_CAPABILITIES
    } else {
        CapabilitySet::empty()
    };
    for capability in (0..64).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Past the kernel's last capability.
            Err(Errno::INVAL) => {}
            other => other?,
        }
    }
    let groups: Vec<Gid> = additional_gids
        .iter()
        .map(|&gid| Gid::from_raw(gid))
        .collect();
    // This process has one thread, so these set the process' identity.
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    rustix::thread::clear_ambient_capability_set()?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Runs the program; returns only if that fails.
fn become_program(args: &[String], env: &[String], cwd: &str) -> io::Error {
    let Some((program, rest)) = args.split_first() else {
        return io::ErrorKind::InvalidInput.into();
    };
    if let Err(e) = std::env::set_current_dir(cwd) {
        return e;
    }
    let executable = |path: &&String| {
        fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    let candidates = exec_candidates(program, env, cwd);
    let Some(path) = candidates.iter().find(executable) else {
        return io::Error::new(io::ErrorKind::NotFound, "no executable file of this name");
    };
    let env = env.iter().filter_map(|entry| entry.split_once('='));
    Command::new(path)
        .arg0(program)
        .args(rest)
        .env_clear()
        .envs(env)
        .exec()
}

#[cfg(test)]
mod mount_tests;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_replace_links_instead_of_following_them() {
        let root = tempfile::tempdir().expect("directory");
        let (link, victim) = (root.path().join("resolv.conf"), root.path().join("victim"));
        fs::write(&victim, "kept").expect("written");
        symlink(&victim, &link).expect("link");
        replace_file(&link, "nameserver 10.0.2.3\n").expect("replaced");
        assert_eq!(fs::read_to_string(&victim).expect("read"), "kept");
        assert_eq!(
            fs::read_to_string(&link).expect("read"),
            "nameserver 10.0.2.3\n"
        );
    }

    #[test]
    fn a_failed_step_names_itself_and_stops_the_plan() {
        let root = tempfile::tempdir().expect("directory");
        let after = root.path().join("after").to_string_lossy().into_owned();
        let steps = [
            Step::LoadModule {
                path: "/nonexistent/x.ko.xz".to_owned(),
            },
            Step::MakeDirectory {
                path: after.clone(),
                mode: 0o755,
            },
        ];
        let error = run(&steps).expect_err("no such module");
        assert_eq!(error.to_string(), "cannot load module /nonexistent/x.ko.xz");
        assert!(!Path::new(&after).exists());
    }

    #[test]
    fn no_workload_may_make_devices_or_load_code() {
        for capability in [
            CapabilitySet::MKNOD,
            CapabilitySet::SYS_ADMIN,
            CapabilitySet::SYS_MODULE,
            CapabilitySet::SYS_PTRACE,
            CapabilitySet::SYS_RAWIO,
            CapabilitySet::NET_ADMIN,
        ] {
            assert!(!ROOT_CAPABILITIES.intersects(capability), "{capability:?}");
        }
    }
}

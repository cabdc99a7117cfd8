//! Steps on the real kernel, in a mount namespace of one thread.

use std::io::Write as _;

use rustix::thread::UnshareFlags;

use super::*;
use crate::sys;

/// Runs `test` with a tmpfs as its root, in which `/run/secrets` is a mount of its
/// own. Says so where this machine does not let it.
fn in_root(name: &str, test: impl FnOnce() + Send + 'static) {
    let scratch = tempfile::tempdir().expect("a directory");
    let root = scratch.path().to_owned();
    let prepare = move || -> io::Result<()> {
        sys::unshare(UnshareFlags::NEWNS | UnshareFlags::FS)?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private)?;
        for path in [root.clone(), root.join("run/secrets")] {
            fs::create_dir_all(&path)?;
            rustix::mount::mount("tmpfs", &path, "tmpfs", MountFlags::NODEV, None)?;
        }
        fs::write(root.join("run/secrets/key"), "held")?;
        fs::create_dir(root.join("tmp"))?;
        let root = root.to_str().expect("a path in text");
        enter_root(root, &[], &[])
    };
    let done = std::thread::spawn(move || prepare().map(|()| test()))
        .join()
        .expect("the test does not panic");
    if let Err(error) = done {
        let _ = writeln!(io::stderr(), "SKIPPED {name}: no mount namespace ({error})");
    }
}

fn keep(path: &str, no_exec: bool) -> Step {
    Step::KeepWritable {
        path: path.to_owned(),
        no_exec,
    }
}

fn can_write(directory: &str) -> bool {
    match fs::write(format!("{directory}/x"), "x") {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
            false
        }
    }
}

/// Whether a program in a directory may be run: the kernel refuses others before
/// it looks at them.
fn can_run(directory: &str) -> bool {
    let program = format!("{directory}/program");
    fs::write(&program, "no program at all").expect("writable");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("writable");
    let error = Command::new(&program).spawn().expect_err("no program");
    match error.raw_os_error() {
        Some(libc::ENOEXEC) => true,
        Some(libc::EACCES) => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sealed_root_takes_writes_where_it_was_told_and_nowhere_else() {
    in_root("a sealed root", || {
        let steps = [
            keep("/run", true),
            keep("/tmp", true),
            keep("/var/lib/data", true),
            Step::SealRoot,
        ];
        run(&steps).expect("the steps");
        for directory in ["/", "/var", "/var/lib"] {
            assert!(!can_write(directory), "{directory}");
        }
        for directory in ["/run", "/tmp", "/var/lib/data"] {
            assert!(can_write(directory), "{directory}");
            assert!(!can_run(directory), "{directory}");
        }
        // What was mounted below stays in sight.
        let held = fs::read_to_string("/run/secrets/key").expect("a resource");
        assert_eq!(held, "held");
    });
}

#[test]
fn programs_run_where_that_is_not_switched_off() {
    in_root("programs in /tmp", || {
        run(&[keep("/tmp", false), Step::SealRoot]).expect("the steps");
        assert!(can_run("/tmp"));
    });
    in_root("a root that is not sealed", || {
        run(&[keep("/tmp", true)]).expect("the steps");
        assert!(can_write("/") && !can_run("/tmp") && can_run("/"));
    });
}

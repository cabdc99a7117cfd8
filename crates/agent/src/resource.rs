//! Where released resources may be placed, and how they are written.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use assay_tee::instance::RESOURCE_ROOT;
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};

/// A path below [`RESOURCE_ROOT`], free of detours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourcePath {
    /// Segments below the root; never empty.
    segments: Vec<String>,
}

/// A path is not one that a resource may be written to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a path of a file below {RESOURCE_ROOT}: {got:?}")]
pub struct ResourcePathError {
    got: String,
}

impl ResourcePath {
    /// Longest name of a file (Linux, `NAME_MAX`).
    const NAME_MAX: usize = 255;

    /// Parses an absolute path.
    ///
    /// # Errors
    /// When it is not below [`RESOURCE_ROOT`], or has an empty, `.` or `..`
    /// segment, or a character that no file name should have.
    pub fn parse(path: &str) -> Result<Self, ResourcePathError> {
        let good = |segment: &str| {
            !matches!(segment, "" | "." | "..")
                && segment.len() <= Self::NAME_MAX
                && !segment.contains(|c: char| c.is_control())
        };
        path.strip_prefix(RESOURCE_ROOT)
            .and_then(|rest| rest.strip_prefix('/'))
            .map(|rest| rest.split('/').map(str::to_owned).collect::<Vec<_>>())
            .filter(|segments| segments.iter().all(|s| good(s)))
            .map(|segments| Self { segments })
            .ok_or_else(|| ResourcePathError {
                got: path.to_owned(),
            })
    }

    /// The path below `root` instead of [`RESOURCE_ROOT`].
    pub fn below(&self, root: &Path) -> PathBuf {
        self.segments
            .iter()
            .fold(root.to_owned(), |path, segment| path.join(segment))
    }
}

/// A resource could not be written.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// A directory could not be made.
    #[error("cannot create the directory of {path:?}")]
    Directory {
        /// The resource's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file could not be written.
    #[error("cannot write {path:?}")]
    Write {
        /// The resource's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Writes one resource below `root`: readable by its owner alone, and never
/// visible half written.
///
/// # Errors
/// Every failure; no file remains under the resource's own name then.
pub fn place_resource(
    root: &Path,
    path: &ResourcePath,
    content: &[u8],
    owner: Option<(u32, u32)>,
) -> Result<(), PlaceError> {
    let file = path.below(root);
    let parent = file.parent().unwrap_or(root);
    std::fs::create_dir_all(parent).map_err(|source| PlaceError::Directory {
        path: file.clone(),
        source,
    })?;
    write_new(parent, &file, content, owner).map_err(|source| PlaceError::Write {
        path: file.clone(),
        source,
    })
}

fn write_new(
    parent: &Path,
    file: &Path,
    content: &[u8],
    owner: Option<(u32, u32)>,
) -> std::io::Result<()> {
    // Resource names cannot hold control characters, so this one is free.
    let partial = parent.join("\u{1}partial");
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(CWD, &partial, flags, Mode::RUSR)?;
    let written = (|| {
        rustix::fs::fchmod(fd.as_fd(), Mode::RUSR)?;
        if let Some((uid, gid)) = owner {
            rustix::fs::fchown(
                fd.as_fd(),
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
            )?;
        }
        std::fs::File::from(fd).write_all(content)?;
        std::fs::rename(&partial, file)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn paths_below_the_root_are_accepted() {
        for (path, below) in [
            ("/run/secrets/password", "/x/password"),
            ("/run/secrets/db/tls.key", "/x/db/tls.key"),
            ("/run/secrets/..data", "/x/..data"),
        ] {
            let parsed = ResourcePath::parse(path).expect(path);
            assert_eq!(parsed.below(Path::new("/x")), Path::new(below));
        }
    }

    #[test]
    fn every_other_path_is_refused() {
        let long = format!("/run/secrets/{}", "x".repeat(256));
        for path in [
            "",
            "password",
            "/run/secrets",
            "/run/secrets/",
            "/run/secretsx/a",
            "/run/secrets//a",
            "/run/secrets/a/",
            "/run/secrets/../a",
            "/run/secrets/a/../../b",
            "/run/secrets/./a",
            "/run/../run/secrets/a",
            "/etc/passwd",
            "run/secrets/a",
            "/run/secrets/a\0b",
            "/run/secrets/a\nb",
            &long,
        ] {
            assert!(ResourcePath::parse(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_resource_is_written_whole_and_for_its_owner_alone() {
        let root = tempfile::tempdir().expect("directory");
        let path = ResourcePath::parse("/run/secrets/db/password").expect("path");
        for content in [b"first".as_slice(), b"second"] {
            place_resource(root.path(), &path, content, None).expect("written");
            let file = root.path().join("db/password");
            assert_eq!(std::fs::read(&file).expect("read"), content);
            let mode = std::fs::metadata(&file)
                .expect("metadata")
                .permissions()
                .mode();
            assert_eq!(mode & 0o7777, 0o400);
        }
        let names = std::fs::read_dir(root.path().join("db"))
            .expect("directory")
            .count();
        assert_eq!(names, 1, "no partial file remains");
    }

    #[test]
    fn a_partial_file_of_another_is_never_followed() {
        let root = tempfile::tempdir().expect("directory");
        let victim = root.path().join("victim");
        std::fs::write(&victim, "kept").expect("written");
        std::os::unix::fs::symlink(&victim, root.path().join("\u{1}partial")).expect("link");
        let path = ResourcePath::parse("/run/secrets/a").expect("path");
        assert!(matches!(
            place_resource(root.path(), &path, b"secret", None),
            Err(PlaceError::Write { .. })
        ));
        assert_eq!(std::fs::read(&victim).expect("read"), b"kept");
    }
}

//! The recipe: what an artifact is made of, every input by digest.

use std::fmt;
use std::str::FromStr;

use assay_tee::Sha256Digest;
use serde::{Deserialize, Deserializer, Serialize};

use crate::hardening::{Hardening, HardeningError, ValidHardening};

/// Exit status of a builder whose inputs give no artifact, now or later
/// (EX_DATAERR of sysexits.h).
pub const EXIT_UNBUILDABLE: u8 = 65;
/// Exit status of a builder that cannot read the registry credentials it was told
/// to use (EX_NOINPUT of sysexits.h).
pub const EXIT_NO_CREDENTIALS: u8 = 66;
/// Exit status of a builder that cannot keep what it pulls where it was told to
/// (EX_CANTCREAT of sysexits.h).
pub const EXIT_NO_CACHE: u8 = 73;

/// Longest command line that Linux keeps on x86 (COMMAND_LINE_SIZE, with NUL).
const MAX_CMDLINE_LEN: usize = 2047;

/// Parameters that a recipe may not set: those of [`Hardening`], of which the
/// kernel would believe the last, and those that replace the guest agent.
const RESERVED_PARAMETERS: [&str; 9] = [
    "quiet",
    "panic",
    "oops",
    "lockdown",
    "module.sig_enforce",
    "init_on_alloc",
    "init",
    "rdinit",
    "--",
];

/// What an artifact is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recipe {
    /// Version of this document: [`Recipe::VERSION`].
    pub version: u32,
    /// The workload's container image.
    pub rootfs: ImageSource,
    /// The image that holds kernel, modules, stub and firmware.
    pub boot_kit: ImageSource,
    /// How the workload's files reach the guest.
    pub layout: Layout,
    /// How the root disk's files are compressed.
    #[serde(default, skip_serializing_if = "Compression::is_none")]
    pub compression: Compression,
    /// What is switched off of what every guest has.
    #[serde(default, skip_serializing_if = "Hardening::is_default")]
    pub hardening: Hardening,
    /// Where the recipe comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    /// Parameters that follow the constant ones ([`ValidHardening::cmdline`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Files of the boot kit that the UKI has as sections of their own.
    #[serde(default, skip_serializing_if = "UkiFiles::is_empty")]
    pub uki: UkiFiles,
    /// Where the artifact goes.
    pub output: Output,
}

/// An OCI image as an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSource {
    /// `host/repository@sha256:…`.
    pub image: String,
}

/// A commit of a Git repository. It is recorded as it was given: nothing is
/// fetched from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GitSource {
    /// Where it is, such as `https://git.example/team/web`.
    pub repository: String,
    /// The commit: 40 or 64 lower-case hex digits.
    pub commit: String,
}

impl GitSource {
    fn validate(&self) -> Result<(), RecipeError> {
        let visible = |text: &str| text.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
        // A user in it is often a password too, and the manifest is public.
        let credentials = self
            .repository
            .split_once("://")
            .and_then(|(_, rest)| rest.split('/').next())
            .is_some_and(|host| host.contains('@') && !self.repository.starts_with("ssh://"));
        let len = self.repository.len();
        if !(1..=1024).contains(&len) || !visible(&self.repository) || credentials {
            return Err(RecipeError::GitRepository);
        }
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if !matches!(self.commit.len(), 40 | 64) || !self.commit.bytes().all(hex) {
            return Err(RecipeError::GitCommit(self.commit.clone()));
        }
        Ok(())
    }
}

/// Files that a UKI has as sections of their own: absolute paths in the boot kit's
/// image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UkiFiles {
    /// What the image says that it is, os-release(5): `.osrel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os_release: Option<String>,
    /// A BMP image to show while the kernel boots: `.splash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub splash: Option<String>,
    /// A cpio archive with microcode in `kernel/x86/microcode` alone: `.ucode`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microcode: Option<String>,
}

impl UkiFiles {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn validate(&self) -> Result<(), RecipeError> {
        let plain = |path: &str| {
            let bad = |part: &str| matches!(part, "" | "." | "..");
            path.strip_prefix('/')
                .is_some_and(|rest| !rest.contains('\0') && !rest.split('/').any(bad))
        };
        for (field, path) in [
            ("uki.osRelease", &self.os_release),
            ("uki.splash", &self.splash),
            ("uki.microcode", &self.microcode),
        ] {
            if let Some(got) = path.as_ref().filter(|path| !plain(path)) {
                return Err(RecipeError::UkiFile {
                    field,
                    got: got.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Where the artifact goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Output {
    /// `host/repository`, without tag or digest.
    pub repository: String,
}

/// How the workload's files reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Layout {
    /// A read-only disk: erofs under dm-verity.
    DmVerity,
    /// The initramfs, and no disk. For small images: the files are in memory,
    /// and several times while the guest boots.
    Initramfs,
}

impl<'de> Deserialize<'de> for Layout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "DmVerity" => Ok(Self::DmVerity),
            "Initramfs" => Ok(Self::Initramfs),
            other => Err(serde::de::Error::custom(format_args!(
                "layout: unknown layout {other:?}, expected \"DmVerity\" or \"Initramfs\""
            ))),
        }
    }
}

/// How the files of a root disk are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4 as its high-compression encoder writes it: quick to read.
    Lz4hc,
    /// Zstandard: smaller. The guest's kernel is Linux 6.10 or newer.
    Zstd,
}

impl Compression {
    /// Whether nothing is compressed.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl<'de> Deserialize<'de> for Compression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "None" => Ok(Self::None),
            "Lz4hc" => Ok(Self::Lz4hc),
            "Zstd" => Ok(Self::Zstd),
            other => Err(serde::de::Error::custom(format_args!(
                "compression: unknown compression {other:?}, expected \"None\", \"Lz4hc\" or \
                 \"Zstd\""
            ))),
        }
    }
}

/// An image by repository and digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PinnedReference {
    repository: String,
    digest: Sha256Digest,
}

/// A string is not `host/repository@sha256:…`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an image by digest (host/repository@sha256:<64 hex digits>)")]
pub struct ParsePinnedReferenceError;

impl PinnedReference {
    /// A reference from its parts.
    pub fn new(repository: &str, digest: Sha256Digest) -> Result<Self, ParsePinnedReferenceError> {
        if is_repository(repository) {
            Ok(Self {
                repository: repository.to_owned(),
                digest,
            })
        } else {
            Err(ParsePinnedReferenceError)
        }
    }

    /// `host/repository`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Digest of the manifest or index.
    pub fn digest(&self) -> Sha256Digest {
        self.digest
    }
}

impl fmt::Display for PinnedReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.digest)
    }
}

impl FromStr for PinnedReference {
    type Err = ParsePinnedReferenceError;

    /// A tag before the digest is dropped: the digest decides.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, digest) = text.split_once('@').ok_or(ParsePinnedReferenceError)?;
        let digest = digest.parse().map_err(|_| ParsePinnedReferenceError)?;
        let path_start = name.rfind('/').map_or(0, |slash| slash + 1);
        let repository = match name.get(path_start..).and_then(|last| last.find(':')) {
            Some(colon) => name.get(..path_start + colon).unwrap_or_default(),
            None => name,
        };
        Self::new(repository, digest)
    }
}

impl Serialize for PinnedReference {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PinnedReference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// Whether `text` is `host[:port]/path` in the grammar of the distribution
/// specification: lower case, no tag, no digest.
fn is_repository(text: &str) -> bool {
    let Some((host, path)) = text.split_once('/') else {
        return false;
    };
    let host_ok = !host.is_empty()
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b));
    let component_ok = |component: &str| {
        let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        component.bytes().next().is_some_and(edge)
            && component.bytes().next_back().is_some_and(edge)
            && component.bytes().all(|b| edge(b) || b"._-".contains(&b))
    };
    host_ok && path.split('/').all(component_ok)
}

/// A recipe that can be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidRecipe {
    /// The workload's container image.
    pub rootfs: PinnedReference,
    /// The boot kit.
    pub boot_kit: PinnedReference,
    /// How the workload's files reach the guest.
    pub layout: Layout,
    /// How the root disk's files are compressed.
    pub compression: Compression,
    /// What is on, and why the rest is not.
    pub hardening: ValidHardening,
    /// Where the recipe comes from.
    pub git: Option<GitSource>,
    /// The complete kernel command line.
    pub cmdline: String,
    /// Files of the boot kit that become sections of the UKI.
    pub uki: UkiFiles,
    /// `host/repository` for the artifact.
    pub output_repository: String,
}

/// A recipe that cannot be built, by the field that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Not JSON of the expected form.
    #[error("recipe is not valid JSON of the expected form")]
    Json(#[source] serde_json::Error),
    /// A version of another builder.
    #[error("version: {0} is not supported, expected {expected}", expected = Recipe::VERSION)]
    Version(u32),
    /// An input that is not by digest.
    #[error("{field}: {got:?} must name an image by digest")]
    Reference {
        /// Path of the field.
        field: &'static str,
        /// Its value.
        got: String,
        /// Why.
        #[source]
        source: ParsePinnedReferenceError,
    },
    /// The output is not a repository.
    #[error("output.repository: {0:?} must be host/repository without a tag or digest")]
    Repository(String),
    /// There is no disk whose files could be compressed.
    #[error("compression: there is no root disk in the layout Initramfs; leave it out")]
    CompressionWithoutDisk,
    /// What is switched off cannot be.
    #[error("hardening")]
    Hardening(#[source] HardeningError),
    /// The repository is none.
    #[error(
        "git.repository: must be the URL of a repository, of visible ASCII, without a user or \
         password"
    )]
    GitRepository,
    /// The commit is none.
    #[error("git.commit: {0:?} must be the 40 or 64 lower-case hex digits of a commit")]
    GitCommit(String),
    /// A file that is named other than by a plain absolute path.
    #[error("{field}: {got:?} must be the absolute path of a file in the boot kit, without `..`")]
    UkiFile {
        /// Path of the field.
        field: &'static str,
        /// Its value.
        got: String,
    },
    /// The command line has a character that the kernel or the stub would read
    /// differently.
    #[error("cmdline: must be printable ASCII without quotes, words separated by one space")]
    CmdlineCharacters,
    /// The command line is too long.
    #[error("cmdline: {0} bytes in all are too long, the kernel keeps {MAX_CMDLINE_LEN}")]
    CmdlineLength(usize),
    /// The command line sets what it may not.
    #[error("cmdline: parameter {0:?} may not be set by a recipe")]
    CmdlineReserved(String),
}

impl Recipe {
    /// The version that this crate reads and writes.
    pub const VERSION: u32 = 1;

    /// Parses and validates a recipe's JSON.
    pub fn parse(bytes: &[u8]) -> Result<ValidRecipe, RecipeError> {
        serde_json::from_slice::<Self>(bytes)
            .map_err(RecipeError::Json)?
            .validate()
    }

    /// Checks every field.
    pub fn validate(&self) -> Result<ValidRecipe, RecipeError> {
        if self.version != Self::VERSION {
            return Err(RecipeError::Version(self.version));
        }
        let reference = |field, source: &ImageSource| {
            source
                .image
                .parse()
                .map_err(|error| RecipeError::Reference {
                    field,
                    got: source.image.clone(),
                    source: error,
                })
        };
        if !is_repository(&self.output.repository) {
            return Err(RecipeError::Repository(self.output.repository.clone()));
        }
        if self.layout == Layout::Initramfs && !self.compression.is_none() {
            return Err(RecipeError::CompressionWithoutDisk);
        }
        let hardening = self.hardening.validate().map_err(RecipeError::Hardening)?;
        if let Some(git) = &self.git {
            git.validate()?;
        }
        self.uki.validate()?;
        Ok(ValidRecipe {
            rootfs: reference("rootfs.image", &self.rootfs)?,
            boot_kit: reference("bootKit.image", &self.boot_kit)?,
            layout: self.layout,
            compression: self.compression,
            cmdline: full_cmdline(&hardening, self.cmdline.as_deref())?,
            hardening,
            git: self.git.clone(),
            uki: self.uki.clone(),
            output_repository: self.output.repository.clone(),
        })
    }
}

/// The constant parameters, and `extra` where no word of it undoes them.
pub(crate) fn full_cmdline(
    hardening: &ValidHardening,
    extra: Option<&str>,
) -> Result<String, RecipeError> {
    let mut cmdline = hardening.cmdline();
    let Some(extra) = extra else {
        return Ok(cmdline);
    };
    if !extra
        .bytes()
        .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'"')
    {
        return Err(RecipeError::CmdlineCharacters);
    }
    for parameter in extra.split(' ') {
        let name = parameter.split('=').next().unwrap_or_default();
        if name.is_empty() {
            return Err(RecipeError::CmdlineCharacters);
        }
        // The kernel takes '-' and '_' in names for the same.
        if RESERVED_PARAMETERS
            .iter()
            .any(|reserved| name.replace('-', "_") == reserved.replace('-', "_"))
        {
            return Err(RecipeError::CmdlineReserved(parameter.to_owned()));
        }
        cmdline.push(' ');
        cmdline.push_str(parameter);
    }
    if cmdline.len() > MAX_CMDLINE_LEN {
        return Err(RecipeError::CmdlineLength(cmdline.len()));
    }
    Ok(cmdline)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardening::{Exception, Setting};

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn good() -> Recipe {
        Recipe {
            version: 1,
            rootfs: ImageSource {
                image: format!("registry.example:5000/team/web@{DIGEST}"),
            },
            boot_kit: ImageSource {
                image: format!("registry.example/kit:6.12@{DIGEST}"),
            },
            layout: Layout::DmVerity,
            compression: Compression::None,
            hardening: Hardening::default(),
            git: None,
            cmdline: None,
            uki: UkiFiles::default(),
            output: Output {
                repository: "registry.example/team/web-guest".to_owned(),
            },
        }
    }

    #[test]
    fn a_good_recipe_is_accepted() {
        let json = serde_json::to_vec(&good()).unwrap();
        let valid = Recipe::parse(&json).unwrap();
        assert_eq!(valid.rootfs.to_string(), good().rootfs.image);
        assert_eq!(valid.boot_kit.repository(), "registry.example/kit");
        let constant = Hardening::default().validate().unwrap().cmdline();
        assert_eq!(valid.cmdline, constant);

        let more = Recipe {
            cmdline: Some("console=hvc0 foo.bar=1".to_owned()),
            ..good()
        };
        let expected = format!("{constant} console=hvc0 foo.bar=1");
        assert_eq!(more.validate().unwrap().cmdline, expected);
    }

    #[test]
    fn every_mistake_names_its_field() {
        let image = |image: &str| ImageSource {
            image: image.to_owned(),
        };
        let cmdline = |text: &str| Recipe {
            cmdline: Some(text.to_owned()),
            ..good()
        };
        let git = |repository: &str, commit: &str| Recipe {
            git: Some(GitSource {
                repository: repository.to_owned(),
                commit: commit.to_owned(),
            }),
            ..good()
        };
        let splash = |path: &str| Recipe {
            uki: UkiFiles {
                splash: Some(path.to_owned()),
                ..UkiFiles::default()
            },
            ..good()
        };
        let repository = |text: &str| Recipe {
            output: Output {
                repository: text.to_owned(),
            },
            ..good()
        };
        let table = [
            (
                Recipe {
                    version: 2,
                    ..good()
                },
                "version: ",
            ),
            (
                Recipe {
                    rootfs: image("registry.example/web:latest"),
                    ..good()
                },
                "rootfs.image: ",
            ),
            (
                Recipe {
                    boot_kit: image(&format!("kit@{DIGEST}")),
                    ..good()
                },
                "bootKit.image: ",
            ),
            (
                Recipe {
                    boot_kit: image(&format!("h/K@{DIGEST}")),
                    ..good()
                },
                "bootKit.image: ",
            ),
            (
                Recipe {
                    layout: Layout::Initramfs,
                    compression: Compression::Zstd,
                    ..good()
                },
                "compression: ",
            ),
            (
                Recipe {
                    hardening: Hardening {
                        exceptions: vec![Exception {
                            setting: Setting::Lockdown,
                            reason: String::new(),
                        }],
                    },
                    ..good()
                },
                "hardening",
            ),
            (git("https://git.example/x", "main"), "git.commit: "),
            (
                git("https://u:p@git.example/x", &"0".repeat(40)),
                "git.repository: ",
            ),
            (git("", &"0".repeat(40)), "git.repository: "),
            (splash("usr/splash.bmp"), "uki.splash: "),
            (splash("/usr/../splash.bmp"), "uki.splash: "),
            (splash("/"), "uki.splash: "),
            (cmdline("init_on_alloc=0"), "cmdline: "),
            (repository("registry.example/x:tag"), "output.repository: "),
            (repository("nohost"), "output.repository: "),
            (cmdline("a\nb"), "cmdline: "),
            (cmdline("a  b"), "cmdline: "),
            (cmdline("module.sig-enforce=0"), "cmdline: "),
            (cmdline("rdinit=/bin/sh"), "cmdline: "),
            (cmdline("-- x"), "cmdline: "),
            (cmdline(&"x".repeat(2048)), "cmdline: "),
        ];
        for (recipe, field) in table {
            let error = recipe.validate().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }

    #[test]
    fn unknown_members_and_choices_are_refused() {
        for field in ["layout", "compression"] {
            let mut value = serde_json::to_value(good()).unwrap();
            value[field] = "Floppy".into();
            let error = Recipe::parse(value.to_string().as_bytes()).unwrap_err();
            let RecipeError::Json(source) = &error else {
                panic!("{error}")
            };
            let source = source.to_string();
            assert!(source.starts_with(&format!("{field}: ")), "{source}");
        }

        let mut value = serde_json::to_value(good()).unwrap();
        value["surprise"] = 1.into();
        assert!(Recipe::parse(value.to_string().as_bytes()).is_err());
    }
}

//! The embedded broker: a key holder's directory, written for one guest and gone
//! with it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use assay_broker::config::Config;
use assay_broker::standalone::Standalone;
use assay_crds::names::{self, RELEASE_CLASS_LABEL, RELEASE_CLASS_SIMULATED};
use assay_crds::v1alpha1::confidential_deployment::{ConfidentialDeployment, SecretMount};
use assay_launcher::spec::HOST_ADDRESS;
use assay_tee::instance::VerifierEndpoint;
use k8s_openapi::api::core::v1::Secret;
use serde_json::Value;
use zeroize::Zeroizing;

use super::say;

/// Parses `NAME=FILE`.
pub(super) fn parse_secret(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok((name.to_owned(), file.into()))
        }
        _ => Err("must be NAME=FILE, where NAME is an entry of spec.secrets".to_owned()),
    }
}

/// The values of a deployment's secrets.
pub(super) struct Secrets {
    directory: PathBuf,
    values: Vec<SecretValue>,
}

struct SecretValue {
    name: String,
    content: Zeroizing<Vec<u8>>,
    class: Option<String>,
}

impl Secrets {
    /// Finds the value of every entry of the deployment's secrets.
    pub(super) fn gather(
        deployment: &ConfidentialDeployment,
        secrets: &[Secret],
        files: &[(String, PathBuf)],
    ) -> Result<Self> {
        let namespace = deployment.metadata.namespace.clone().unwrap_or_default();
        let name = deployment.metadata.name.clone().unwrap_or_default();
        let mounts = &deployment.spec.secrets;
        for (name, _) in files {
            ensure!(
                mounts.iter().any(|mount| mount.name == *name),
                "--secret {name}: spec.secrets has no such entry"
            );
        }
        let values = mounts.iter().map(|mount| {
            let file = files.iter().rev().find(|(name, _)| *name == mount.name);
            match file {
                Some((_, file)) => from_file(mount, file),
                None => from_secret(mount, &namespace, secrets),
            }
        });
        Ok(Self {
            values: values.collect::<Result<_>>()?,
            directory: Path::new(&namespace).join(name),
        })
    }

    fn write(&self, below: &Path) -> Result<()> {
        let directory = below.join(&self.directory);
        make_private(&directory)?;
        for value in &self.values {
            write_private(&directory.join(&value.name), &value.content)?;
            if let Some(class) = &value.class {
                let file = directory.join(format!("{}.class", value.name));
                write_private(&file, class.as_bytes())?;
            }
        }
        Ok(())
    }
}

fn from_file(mount: &SecretMount, file: &Path) -> Result<SecretValue> {
    let content = fs::read(file);
    let content =
        content.with_context(|| format!("--secret {}: {}", mount.name, file.display()))?;
    say(
        "secret",
        format_args!("{} from {}", mount.name, file.display()),
    );
    Ok(SecretValue {
        name: mount.name.clone(),
        content: Zeroizing::new(content),
        // Whoever names a value for this run means it.
        class: Some(RELEASE_CLASS_SIMULATED.to_owned()),
    })
}

fn from_secret(mount: &SecretMount, namespace: &str, secrets: &[Secret]) -> Result<SecretValue> {
    let reference = &mount.secret_ref;
    let entry = format!("spec.secrets[{}]", mount.name);
    let secret = secrets.iter().find(|secret| {
        secret.metadata.name.as_deref() == Some(&reference.name)
            && secret.metadata.namespace.as_deref() == Some(namespace)
    });
    let Some(secret) = secret else {
        bail!(
            "{entry}: there is no Secret {namespace}/{}; add it to the files, or give its value \
             with --secret {}=FILE",
            reference.name,
            mount.name
        );
    };
    let text = secret.string_data.as_ref();
    let text = text.and_then(|data| data.get(&reference.key));
    let bytes = secret.data.as_ref();
    let bytes = bytes.and_then(|data| data.get(&reference.key));
    let content = match (text, bytes) {
        // As the API server merges them.
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(bytes)) => bytes.0.clone(),
        (None, None) => bail!(
            "{entry}: Secret {namespace}/{} has no key {}; add it, or correct secretRef.key",
            reference.name,
            reference.key
        ),
    };
    say(
        "secret",
        format_args!(
            "{} from Secret {}, key {}",
            mount.name, reference.name, reference.key
        ),
    );
    let labels = secret.metadata.labels.as_ref();
    Ok(SecretValue {
        name: mount.name.clone(),
        content: Zeroizing::new(content),
        class: labels.and_then(|labels| labels.get(RELEASE_CLASS_LABEL).cloned()),
    })
}

/// What the broker is made of.
pub(super) struct Setup<'a> {
    /// Its directory, which does not exist yet.
    pub(super) directory: &'a Path,
    /// Deployment, image and policy.
    pub(super) objects: [Value; 3],
    /// Values to release.
    pub(super) secrets: &'a Secrets,
    /// PEM of the root that simulated evidence is accepted under.
    pub(super) simulated_root: Option<&'a str>,
    /// What AMD publishes.
    pub(super) collateral: Option<&'a Path>,
}

impl Setup<'_> {
    /// Writes the directory and starts to serve on the loopback interface.
    pub(super) fn start(&self) -> Result<Standalone> {
        let path = |name: &str| self.directory.join(name);
        make_private(&path("objects"))?;
        for (name, object) in ["deployment", "image", "policy"].iter().zip(&self.objects) {
            let file = path("objects").join(format!("{name}.json"));
            write_private(&file, object.to_string().as_bytes())?;
        }
        make_private(&path("secrets"))?;
        self.secrets.write(&path("secrets"))?;
        if let Some(root) = self.simulated_root {
            write_private(&path("simulated-root.pem"), root.as_bytes())?;
        }
        write_private(&path("broker.toml"), self.config()?.as_bytes())?;
        let config = Config::load(&path("broker.toml")).context("cannot configure the broker")?;
        Standalone::start(&config).context("cannot start the broker")
    }

    fn config(&self) -> Result<String> {
        let mut config = format!(
            "listen = \"127.0.0.1:0\"\n\
             stateDirectory = \"state\"\n\
             tls.names = [\"{}\"]\n\
             secrets.files.directory = \"secrets\"\n\
             # The objects do not change, and the host is this machine.\n\
             inventory = {{ directory = \"objects\", reloadInterval = \"1h\", anyChip = true }}\n",
            names::BROKER
        );
        if self.simulated_root.is_some() {
            config += "simulatedRoot = \"simulated-root.pem\"\n";
        }
        if let Some(directory) = self.collateral {
            let directory = super::absolute(directory).context("--collateral")?;
            let directory = directory.to_str().context("--collateral is not UTF-8")?;
            // A JSON string is one of TOML's.
            let directory = serde_json::to_string(directory)?;
            config.extend(["collateral.directory = ", &directory, "\n"]);
        }
        Ok(config)
    }
}

/// How the guest reaches the broker: QEMU carries what it sends to the host's
/// address to the loopback interface.
pub(super) fn verifier(broker: &Standalone) -> VerifierEndpoint {
    let port = broker.address.port();
    VerifierEndpoint {
        url: format!("https://{}:{port}", names::BROKER),
        addresses: vec![format!("{HOST_ADDRESS}:{port}")],
        ca: broker.ca.clone(),
    }
}

fn make_private(directory: &Path) -> Result<()> {
    let mut builder = fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("cannot make {}", directory.display()))
}

fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let write = || {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600);
        io::Write::write_all(&mut file.open(path)?, content)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Objects;

    fn quickstart() -> Objects {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart");
        Objects::load(&directory).unwrap()
    }

    fn gather(objects: &Objects, files: &[(&str, &Path)]) -> Result<Secrets, String> {
        let files: Vec<_> = files
            .iter()
            .map(|(name, file)| ((*name).to_owned(), (*file).to_owned()))
            .collect();
        Secrets::gather(&objects.deployments[0], &objects.secrets, &files)
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn values_come_from_secrets_and_from_files() {
        let objects = quickstart();
        let directory = tempfile::tempdir().unwrap();
        let written = |secrets: &Secrets, name: &str| {
            let below = directory.path().join(name);
            secrets.write(&below).unwrap();
            let read = |name: &str| fs::read_to_string(below.join("quickstart/web").join(name));
            (read("htpasswd").unwrap(), read("htpasswd.class").ok())
        };
        let (value, class) = written(&gather(&objects, &[]).unwrap(), "secret");
        assert!(value.starts_with("visitor:"), "{value}");
        assert_eq!(class.as_deref(), Some("simulated"));

        let mut unlabelled = quickstart();
        unlabelled.secrets[0].metadata.labels = None;
        let (_, class) = written(&gather(&unlabelled, &[]).unwrap(), "unlabelled");
        assert_eq!(class, None);

        let file = directory.path().join("value");
        fs::write(&file, "other").unwrap();
        let secrets = gather(&objects, &[("htpasswd", &file)]).unwrap();
        let (value, class) = written(&secrets, "file");
        assert_eq!(
            (value.as_str(), class.as_deref()),
            ("other", Some("simulated"))
        );
    }

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        let mut objects = quickstart();
        let nowhere = Path::new("/nonexistent");
        for (files, words) in [
            (
                &[("htpasswd", nowhere)][..],
                "--secret htpasswd: /nonexistent",
            ),
            (&[("other", nowhere)], "spec.secrets has no such entry"),
        ] {
            let error = gather(&objects, files).err().unwrap();
            assert!(error.contains(words), "{error}");
        }
        let reference = &mut objects.deployments[0].spec.secrets[0].secret_ref;
        reference.key = "passwords".to_owned();
        let error = gather(&objects, &[]).err().unwrap();
        assert!(error.contains("has no key passwords"), "{error}");
        objects.secrets.clear();
        let error = gather(&objects, &[]).err().unwrap();
        assert!(error.contains("--secret htpasswd=FILE"), "{error}");
    }

    #[test]
    fn a_secret_is_a_name_and_a_file() {
        assert_eq!(
            parse_secret("a=b=c").unwrap(),
            ("a".to_owned(), PathBuf::from("b=c"))
        );
        for text in ["a", "=b", "a="] {
            assert!(parse_secret(text).is_err(), "{text}");
        }
    }
}

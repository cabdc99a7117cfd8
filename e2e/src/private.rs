//! A registry behind a password, beside the cluster's, which is everybody's.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use assay_registry::{DockerConfig, NoProgress, Registry, RegistryOptions};
use serde_json::{Value, json};

use crate::Environment;

/// Its port, at the address of the cluster's registry.
const PORT: u16 = 5001;
/// `user`, whose password is `secret`.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
/// It starts in milliseconds.
const START: Duration = Duration::from_secs(30);

/// Host and port of the registry that [`PrivateRegistry::start`] starts.
pub fn host(environment: &Environment) -> String {
    let (address, _) = environment
        .registry
        .rsplit_once(':')
        .unwrap_or((&environment.registry, ""));
    format!("{address}:{PORT}")
}

/// What of `docker login` a Secret of type `kubernetes.io/dockerconfigjson` holds.
pub fn docker_config(environment: &Environment) -> Value {
    json!({"auths": {host(environment): {"username": "user", "password": "secret"}}})
}

/// A registry that runs until it is dropped, and keeps nothing.
pub struct PrivateRegistry {
    process: Child,
}

impl Drop for PrivateRegistry {
    fn drop(&mut self) {
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl PrivateRegistry {
    /// Starts it from the program of the cluster's own.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn start(environment: &Environment, program: &Path) -> Result<Self> {
        let directory = environment.scratch.join("private-registry");
        std::fs::create_dir_all(&directory).context("create the registry's directory")?;
        let passwords = directory.join("htpasswd");
        std::fs::write(&passwords, HTPASSWD).context("write the registry's passwords")?;
        let host = host(environment);
        let configuration = json!({
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": true}},
            "storage": {"inmemory": {}},
            "http": {"addr": host},
            "auth": {"htpasswd": {"realm": "private", "path": passwords}},
        });
        let path = directory.join("registry.json");
        std::fs::write(&path, configuration.to_string()).context("write its configuration")?;
        let process = Command::new(program)
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("run {}", program.display()))?;
        let registry = Self { process };
        let start = Instant::now();
        while TcpStream::connect(&host).is_err() {
            ensure!(start.elapsed() < START, "nobody listens at {host}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(registry)
    }

    /// Copies an image of the cluster's registry, and returns the copy's reference.
    ///
    /// # Errors
    /// When either registry refuses.
    pub fn copy(&self, environment: &Environment, reference: &str) -> Result<String> {
        let host = host(environment);
        let nobody = Registry::new(RegistryOptions {
            plain_http_hosts: vec![environment.registry.clone(), host.clone()],
            ..RegistryOptions::default()
        })?;
        let config = docker_config(environment).to_string();
        let owner = nobody.with_credentials(DockerConfig::parse(config.as_bytes())?);
        let runtime = tokio::runtime::Runtime::new().context("start the async runtime")?;
        runtime.block_on(async {
            let image = nobody.pull(reference).await?.to_image();
            let copy = format!("{host}/private/copy");
            let copy = owner.push(&copy, &image, &NoProgress).await?;
            ensure!(
                nobody.pull(&copy).await.is_err(),
                "the private registry is everybody's"
            );
            Ok(copy)
        })
    }
}

//! kubectl as a person uses it.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// kubectl for one cluster.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// Uses `program` with `kubeconfig`.
    pub fn new(program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self {
            program,
            kubeconfig,
        }
    }

    /// Runs kubectl with `args` and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the error has its standard error.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.run_with_input(args, "")
    }

    /// As [`Self::run`], with `input` on standard input.
    ///
    /// # Errors
    /// When it fails; the error has its standard error.
    pub fn run_with_input(&self, args: &[&str], input: &str) -> Result<String> {
        let output = self.output(args, input)?;
        if !output.status.success() {
            bail!(
                "kubectl {} failed: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        String::from_utf8(output.stdout).context("kubectl printed something that is not UTF-8")
    }

    /// Runs kubectl and returns whatever came of it.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn output(&self, args: &[&str], input: &str) -> Result<Output> {
        let mut child = Command::new(&self.program)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {}", self.program.display()))?;
        let mut stdin = child
            .stdin
            .take()
            .context("kubectl has no standard input")?;
        stdin
            .write_all(input.as_bytes())
            .context("write to kubectl")?;
        drop(stdin);
        child.wait_with_output().context("wait for kubectl")
    }

    /// An object or a list as JSON.
    ///
    /// # Errors
    /// When kubectl fails or prints no JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        serde_json::from_str(&self.run(&all)?).context("kubectl printed no JSON")
    }

    /// An object as JSON, or `None` if there is none.
    ///
    /// # Errors
    /// When kubectl fails or prints no JSON.
    pub fn find(&self, namespace: &str, kind: &str, name: &str) -> Result<Option<Value>> {
        let text = self.run(&[
            "-n",
            namespace,
            "get",
            kind,
            name,
            "--ignore-not-found",
            "-o",
            "json",
        ])?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text)
            .map(Some)
            .context("kubectl printed no JSON")
    }

    /// All objects of a kind with a label, as JSON.
    ///
    /// # Errors
    /// When kubectl fails or prints no JSON.
    pub fn list(&self, namespace: &str, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let list = self.json(&["-n", namespace, "get", kind, "-l", selector])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Applies an object.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.run_with_input(&["apply", "-f", "-"], &object.to_string())
            .map(drop)
    }

    /// Prints what a person would look at when something does not happen.
    pub fn print_state(&self, namespace: &str) {
        let looks: [&[&str]; 6] = [
            &[
                "-n",
                namespace,
                "get",
                "mi,cdep,ap,ar,deploy,job,pod,svc,endpointslice",
                "-o",
                "wide",
            ],
            &["-n", namespace, "get", "mi,cdep,ar", "-o", "yaml"],
            &["-n", namespace, "describe", "pods"],
            &["-n", namespace, "get", "events", "--sort-by=.lastTimestamp"],
            &["-n", "assay-system", "get", "pods", "-o", "wide"],
            &[
                "-n",
                "assay-system",
                "logs",
                "-l",
                "app.kubernetes.io/name=assay",
                "--tail=60",
                "--prefix",
                "--all-containers",
            ],
        ];
        for args in looks {
            self.print_look(args);
        }
        let Ok(pods) = self.json(&["-n", namespace, "get", "pods"]) else {
            return;
        };
        for pod in pods["items"].as_array().into_iter().flatten() {
            if let Some(name) = pod["metadata"]["name"].as_str() {
                self.print_look(&[
                    "-n",
                    namespace,
                    "logs",
                    name,
                    "--all-containers",
                    "--tail=80",
                ]);
            }
        }
    }

    fn print_look(&self, args: &[&str]) {
        eprintln!("--- kubectl {}", args.join(" "));
        match self.output(args, "") {
            Ok(output) => eprintln!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => eprintln!("{error:#}"),
        }
    }
}

/// The status of a condition in an object's status.
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == type_)
}

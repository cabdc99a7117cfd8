//! A pod that visits Services as other pods do: what a Service answers is not
//! asked from this machine, which need not be a node of the cluster.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::{Environment, wait};

/// Name of the pod.
const NAME: &str = "visitor";
/// Bounds a visit to a workload that has little to do.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Starts the pod and waits until it runs.
///
/// # Errors
/// When the API server refuses it, or it does not start.
pub fn start(environment: &Environment, namespace: &str) -> Result<()> {
    let kubectl = environment.kubectl();
    // No pod is admitted without it, and a namespace that is new gets it late.
    wait::until(
        &kubectl,
        namespace,
        "the default service account",
        Duration::from_secs(30),
        || kubectl.find(namespace, "serviceaccount", "default"),
    )?;
    kubectl.apply(&json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": NAME, "namespace": namespace},
        "spec": {
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": NAME,
                "image": environment.images.busybox,
                "command": ["sleep", "86400"],
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    }))?;
    kubectl
        .run(&[
            "-n",
            namespace,
            "wait",
            "pod",
            NAME,
            "--for=condition=Ready",
            "--timeout=60s",
        ])
        .map(drop)
}

/// Status and body of `GET http://{host}:{port}{path}`, with basic
/// authentication where `user` (`name:password`) is given; none when nobody
/// answers within `timeout`.
///
/// # Errors
/// When the pod cannot be used, or the answer is not HTTP.
pub fn get(
    environment: &Environment,
    namespace: &str,
    (host, port): (&str, u16),
    path: &str,
    user: Option<&str>,
    timeout: Duration,
) -> Result<Option<(u16, String)>> {
    let authorization = user
        .map(|user| format!("Authorization: Basic {}\r\n", STANDARD.encode(user)))
        .unwrap_or_default();
    // HTTP/1.0, so that the answer ends with the connection. A static busybox
    // has no wget that works.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n{authorization}\r\n");
    let port = port.to_string();
    let timeout = timeout.as_secs().to_string();
    let visit = [
        "-n", namespace, "exec", "-i", NAME, "--", "busybox", "timeout", &timeout, "nc", host,
        &port,
    ];
    let output = environment.kubectl().output(&visit, &request)?;
    let error = String::from_utf8_lossy(&output.stderr);
    // kubectl says so when the command ran, and something else when it did not.
    if !output.status.success() && !error.contains("command terminated with exit code") {
        bail!("kubectl exec {NAME} failed: {}", error.trim());
    }
    if output.stdout.is_empty() {
        return Ok(None);
    }
    parse_answer(&String::from_utf8_lossy(&output.stdout)).map(Some)
}

fn parse_answer(answer: &str) -> Result<(u16, String)> {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer is not HTTP")?;
    let status = head
        .split_whitespace()
        .nth(1)
        .context("the answer has no status")?;
    Ok((status.parse().context("parse the status")?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_status_and_body() {
        let answer = "HTTP/1.1 401 Unauthorized\r\nServer: nginx\r\n\r\nno\r\n\r\nway";
        let (status, body) = parse_answer(answer).unwrap();
        assert_eq!((status, body.as_str()), (401, "no\r\n\r\nway"));
        assert!(parse_answer("SSH-2.0-x\r\n").is_err());
        assert!(parse_answer("HTTP/1.1 yes\r\n\r\n").is_err());
    }
}

//! How long each phase took, as far as the API server and the launchers' logs
//! tell: the API server counts whole seconds, a log has fractions.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::Value;

use crate::kubectl::condition;
use crate::{Environment, quickstart};

/// The phases of the quickstart, as a table.
///
/// # Errors
/// When the API server cannot be asked.
pub fn table(environment: &Environment) -> Result<String> {
    let kubectl = environment.kubectl();
    let namespace = quickstart::NAMESPACE;
    let of_image = format!("assay.dev/image={}", quickstart::IMAGE);
    let job = kubectl.list(namespace, "jobs", &of_image)?.pop();
    let image = kubectl
        .find(namespace, "measuredimage", quickstart::IMAGE)?
        .context("the MeasuredImage is gone")?;
    let mut table = built(&job.unwrap_or_default(), &image);
    let _ = writeln!(
        table,
        "Seconds after the creation of the pod:\n{:<28}{:>9}{:>9}{:>10}{:>9}{:>9}",
        "POD", "LAUNCHER", "BOOTED", "ATTESTED", "GATE", "READY"
    );
    let of_deployment = format!("assay.dev/deployment={}", quickstart::DEPLOYMENT);
    for pod in kubectl.list(namespace, "pods", &of_deployment)? {
        let name = pod["metadata"]["name"]
            .as_str()
            .context("a pod has no name")?;
        let log = kubectl.run(&["-n", namespace, "logs", name, "--timestamps"])?;
        let [launcher, booted, attested, gate, ready] =
            started(&pod, &log).map(|after| after.unwrap_or_else(|| "-".to_owned()));
        let _ = writeln!(
            table,
            "{name:<28}{launcher:>9}{booted:>9}{attested:>10}{gate:>9}{ready:>9}"
        );
    }
    Ok(table)
}

/// The build in its Job, and what the operator adds: it pulls the artifact and
/// recomputes every hash.
fn built(job: &Value, image: &Value) -> String {
    let [start, completion] =
        ["startTime", "completionTime"].map(|field| time(&job["status"][field]));
    let measured = true_since(image, "Ready");
    let seconds = |from, to| {
        after(from, to).map_or_else(
            || "an unknown time".to_owned(),
            |after| format!("{after} s"),
        )
    };
    format!(
        "Built in {}, recomputed and published in {}.\n",
        seconds(start, completion),
        seconds(completion, measured)
    )
}

/// When, after the creation of a pod, its launcher started, its guest said that
/// it booted and that it was attested, the gate opened, and the pod was Ready.
fn started(pod: &Value, log: &str) -> [Option<String>; 5] {
    let running = &pod["status"]["containerStatuses"][0]["state"]["running"];
    [
        time(&running["startedAt"]),
        logged(log, quickstart::BOOTED),
        logged(log, quickstart::ATTESTED),
        true_since(pod, "assay.dev/Attested"),
        true_since(pod, "Ready"),
    ]
    .map(|at| after(time(&pod["metadata"]["creationTimestamp"]), at))
}

/// Seconds between two times, with a fraction where the later one has one.
fn after(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<String> {
    let to = to?;
    let digits = usize::from(to.subsec_nanosecond() != 0);
    let seconds = to.duration_since(from?).as_secs_f64();
    Some(format!("{seconds:.digits$}"))
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

fn true_since(object: &Value, type_: &str) -> Option<Timestamp> {
    let condition = condition(object, type_).filter(|condition| condition["status"] == "True")?;
    time(&condition["lastTransitionTime"])
}

/// Time of the first line with `text` in a log with time stamps.
fn logged(log: &str, text: &str) -> Option<Timestamp> {
    let line = log.lines().find(|line| line.contains(text))?;
    line.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_s_times_come_from_its_status_and_its_log() {
        let state = |type_: &str, status: &str, at: &str| json!({"type": type_, "status": status, "lastTransitionTime": at});
        let mut pod = json!({
            "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {
                "containerStatuses": [{"state": {"running": {"startedAt": "2026-01-01T00:00:01Z"}}}],
                "conditions": [
                    state("assay.dev/Attested", "True", "2026-01-01T00:00:05Z"),
                    state("Ready", "True", "2026-01-01T00:00:06Z"),
                ],
            },
        });
        let log = "2026-01-01T00:00:01.9Z INFO starting\n\
            2026-01-01T00:00:03.25Z x INFO guest event=Booted\n\
            2026-01-01T00:00:04.5Z x INFO guest event=AttestationFailed { message: \"\" }\n\
            2026-01-01T00:00:04.75Z x INFO guest event=Attested\n\
            2026-01-01T00:00:24.75Z x INFO guest event=Attested\n";
        let found = started(&pod, log).map(Option::unwrap_or_default);
        assert_eq!(found, ["1", "3.2", "4.8", "5", "6"]);

        pod["status"]["conditions"][1]["status"] = json!("False");
        let found = started(&pod, "").map(Option::unwrap_or_default);
        assert_eq!(found, ["1", "", "", "5", ""]);
    }

    #[test]
    fn a_build_is_timed_to_its_publication() {
        let job = json!({"status": {
            "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:12Z",
        }});
        let image = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:14Z"},
        ]}});
        assert_eq!(
            built(&job, &image),
            "Built in 12 s, recomputed and published in 2 s.\n"
        );
        assert!(built(&Value::Null, &image).contains("unknown"));
    }
}

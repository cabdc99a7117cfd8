//! How far a build is: what its pod says, and what the builder in it answers.
//!
//! A build has no credentials of the cluster, so it is asked. Nothing depends on the
//! answer but what people are told; without one, as where a network policy is in the
//! way, they are told that it runs.

use std::net::SocketAddr;
use std::time::Duration;

use assay_crds::v1alpha1::MeasuredImage;
use assay_crds::v1alpha1::measured_image::{BuildPhase, BuildStatus};
use k8s_openapi::api::core::v1::Pod;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Port of the builder that answers.
pub(super) const PROGRESS_PORT: u16 = 8082;
/// Time for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer.
const MAX_ANSWER_LEN: u64 = 4096;
/// Percent by which a transfer must go on to be told again.
const COARSENESS: i32 = 5;

/// Why a container waits that will not start by itself.
const OBSTACLES: [&str; 7] = [
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
];

/// A build that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// How far it is.
    pub status: BuildStatus,
    /// Why its pod does not start.
    pub blocked: Option<String>,
}

impl Running {
    /// A build of which no more is known.
    pub(super) fn at(phase: BuildPhase) -> Self {
        Self {
            status: BuildStatus::at(phase),
            blocked: None,
        }
    }
}

/// What the pods of a Job say that runs.
pub(super) async fn running(pods: &[Pod]) -> Running {
    let phase_of = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
    let ended = |pod: &&Pod| matches!(phase_of(pod).as_deref(), Some("Succeeded" | "Failed"));
    let mut alive = pods
        .iter()
        .filter(|pod| !ended(pod) && pod.metadata.deletion_timestamp.is_none());
    let Some(pod) = alive.next() else {
        return Running::at(BuildPhase::Pending);
    };
    if phase_of(pod).as_deref() != Some("Running") {
        return Running {
            blocked: blocked(pod),
            ..Running::at(BuildPhase::Pending)
        };
    }
    let address = pod.status.as_ref().and_then(|status| {
        let address = status.pod_ip.as_ref()?.parse().ok()?;
        Some(SocketAddr::new(address, PROGRESS_PORT))
    });
    let asked = async {
        let answer = tokio::time::timeout(PATIENCE, ask(address?)).await;
        parse(&answer.ok()?.ok()?)
    };
    Running {
        status: asked.await.unwrap_or(BuildStatus::at(BuildPhase::Running)),
        blocked: None,
    }
}

/// Why a pod does not start, where it says so.
fn blocked(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let unschedulable = conditions.find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    });
    if let Some(condition) = unschedulable {
        let message = condition.message.as_deref().unwrap_or("no node takes it");
        return Some(format!("its pod cannot be scheduled: {message}"));
    }
    let containers = status.container_statuses.iter().flatten();
    let mut waiting = containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref());
    waiting.find_map(|waiting| {
        let reason = waiting.reason.as_deref()?;
        let message = waiting.message.as_deref().unwrap_or_default();
        OBSTACLES
            .contains(&reason)
            .then(|| format!("its pod cannot start: {reason}: {message}"))
    })
}

async fn ask(address: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = "GET / HTTP/1.1\r\nHost: build\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER_LEN).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The builder's answer. Its numbers are checked, not believed: they get into a status.
fn parse(answer: &[u8]) -> Option<BuildStatus> {
    let answer = std::str::from_utf8(answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        return None;
    }
    let said: BuildStatus = serde_json::from_str(body).ok()?;
    let count = |bytes: Option<i64>| bytes.and_then(|bytes| u64::try_from(bytes).ok());
    Some(
        match (count(said.transferred_bytes), count(said.total_bytes)) {
            (Some(transferred), Some(total)) => {
                BuildStatus::transfer(said.phase, transferred, total)
            }
            _ => BuildStatus::at(said.phase),
        },
    )
}

/// What an image's status says of a build: what it says already, unless there is news.
pub(super) fn shown(image: &MeasuredImage, running: &Running) -> BuildStatus {
    let now = running.status;
    let before = image.status.as_ref().and_then(|status| status.build);
    match before {
        Some(before) if before.phase == now.phase && !is_news(&before, &now) => before,
        // A builder that does not answer once is where it was.
        Some(before) if now.phase == BuildPhase::Running && before.phase > BuildPhase::Running => {
            before
        }
        _ => now,
    }
}

fn is_news(before: &BuildStatus, now: &BuildStatus) -> bool {
    match (before.percent, now.percent) {
        (Some(before), Some(now)) => {
            before.abs_diff(now) >= COARSENESS.unsigned_abs() || (now == 100 && before != 100)
        }
        (before, now) => before != now,
    }
}

/// The same for a person.
pub(super) fn sentence(status: &BuildStatus) -> String {
    let what = match status.phase {
        BuildPhase::Pending => "its pod has not started",
        BuildPhase::Running => "it is running",
        BuildPhase::PullingRootfs => "pulling the workload's image",
        BuildPhase::PullingBootKit => "pulling the boot kit",
        BuildPhase::Flattening => "flattening layers",
        BuildPhase::Erofs => "writing the root file system",
        BuildPhase::Verity => "computing the root disk's hash tree",
        BuildPhase::Uki => "making initramfs and UKI",
        BuildPhase::Packing => "packing the artifact",
        BuildPhase::Pushing => "pushing the artifact",
    };
    match (status.transferred_bytes, status.total_bytes, status.percent) {
        (Some(transferred), Some(total), Some(percent)) => format!(
            "{what}: {} of {}, {percent} %",
            mebibytes(transferred),
            mebibytes(total)
        ),
        _ => what.to_owned(),
    }
}

fn mebibytes(bytes: i64) -> String {
    let tenths = bytes.saturating_mul(10) / (1 << 20);
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use assay_crds::v1alpha1::MeasuredImageStatus;
    use k8s_openapi::api::core::v1::{
        ContainerState, ContainerStateWaiting, ContainerStatus, PodCondition, PodStatus,
    };
    use tokio::net::TcpListener;

    use super::*;
    use crate::fixtures;

    fn answer(body: &str) -> Vec<u8> {
        format!("HTTP/1.1 200 OK\r\nContent-Type: x\r\n\r\n{body}").into_bytes()
    }

    #[test]
    fn the_builder_s_numbers_are_checked() {
        let phase = BuildPhase::Pushing;
        for (body, expected) in [
            (
                r#"{"phase": "Pushing", "transferredBytes": 1, "totalBytes": 4, "percent": 99}"#,
                Some(BuildStatus::transfer(phase, 1, 4)),
            ),
            (
                r#"{"phase": "Pushing", "transferredBytes": 9, "totalBytes": 4}"#,
                Some(BuildStatus::transfer(phase, 4, 4)),
            ),
            (
                r#"{"phase": "Pushing", "transferredBytes": -1, "totalBytes": 4}"#,
                Some(BuildStatus::at(phase)),
            ),
            (
                r#"{"phase": "Pushing", "totalBytes": 0, "transferredBytes": 0}"#,
                Some(BuildStatus::transfer(phase, 0, 0)),
            ),
            (r#"{"phase": "Conquering"}"#, None),
            ("", None),
        ] {
            assert_eq!(parse(&answer(body)), expected, "{body}");
        }
        assert_eq!(
            parse(b"HTTP/1.1 500 No\r\n\r\n{\"phase\":\"Pushing\"}"),
            None
        );
        assert_eq!(parse(b"\xff\r\n\r\n"), None);
    }

    #[tokio::test]
    async fn an_endless_answer_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(&[b'x'; 1000]).await.is_ok() {}
        });
        let said = ask(address).await.unwrap();
        assert_eq!(said.len() as u64, MAX_ANSWER_LEN);
        assert_eq!(parse(&said), None);
    }

    fn pod(phase: &str, status: PodStatus) -> Pod {
        Pod {
            status: Some(PodStatus {
                phase: Some(phase.to_owned()),
                ..status
            }),
            ..Pod::default()
        }
    }

    fn waiting(reason: &str) -> PodStatus {
        let waiting = ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message: Some("because".to_owned()),
        };
        PodStatus {
            container_statuses: Some(vec![ContainerStatus {
                state: Some(ContainerState {
                    waiting: Some(waiting),
                    ..ContainerState::default()
                }),
                ..ContainerStatus::default()
            }]),
            ..PodStatus::default()
        }
    }

    fn unschedulable() -> PodStatus {
        PodStatus {
            conditions: Some(vec![PodCondition {
                type_: "PodScheduled".to_owned(),
                status: "False".to_owned(),
                reason: Some("Unschedulable".to_owned()),
                message: Some("persistentvolumeclaim \"cache\" not found".to_owned()),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }
    }

    #[tokio::test]
    async fn a_pod_that_does_not_start_says_why() {
        for (pods, sentence) in [
            (vec![], None),
            (vec![pod("Failed", PodStatus::default())], None),
            (vec![pod("Pending", PodStatus::default())], None),
            (vec![pod("Pending", waiting("ContainerCreating"))], None),
            (
                vec![pod("Pending", waiting("ImagePullBackOff"))],
                Some("its pod cannot start: ImagePullBackOff: because"),
            ),
            (
                vec![
                    pod("Failed", waiting("ErrImagePull")),
                    pod("Pending", unschedulable()),
                ],
                Some("its pod cannot be scheduled: persistentvolumeclaim \"cache\" not found"),
            ),
        ] {
            let running = running(&pods).await;
            assert_eq!(running.status, BuildStatus::at(BuildPhase::Pending));
            assert_eq!(running.blocked.as_deref(), sentence);
        }
        // It runs, and does not answer.
        let silent = running(&[pod("Running", PodStatus::default())]).await;
        assert_eq!(silent, Running::at(BuildPhase::Running));
    }

    #[test]
    fn a_status_is_written_for_news_alone() {
        let transfer = |done| BuildStatus::transfer(BuildPhase::PullingRootfs, done, 1000);
        let at = BuildStatus::at;
        let other = BuildStatus::transfer(BuildPhase::PullingBootKit, 0, 1000);
        for (before, now, expected) in [
            (None, transfer(1), transfer(1)),
            (Some(transfer(100)), transfer(149), transfer(100)),
            (Some(transfer(100)), transfer(150), transfer(150)),
            (Some(transfer(100)), transfer(40), transfer(40)),
            (Some(transfer(990)), transfer(1000), transfer(1000)),
            (
                Some(at(BuildPhase::PullingRootfs)),
                transfer(0),
                transfer(0),
            ),
            (Some(transfer(990)), other, other),
            (Some(transfer(100)), at(BuildPhase::Running), transfer(100)),
            (
                Some(transfer(100)),
                at(BuildPhase::Pending),
                at(BuildPhase::Pending),
            ),
        ] {
            let mut image = fixtures::new_image();
            image.status = Some(MeasuredImageStatus {
                build: before,
                ..MeasuredImageStatus::default()
            });
            let running = Running {
                status: now,
                blocked: None,
            };
            assert_eq!(shown(&image, &running), expected, "{before:?} {now:?}");
        }
    }

    #[test]
    fn a_person_reads_mebibytes() {
        let status = BuildStatus::transfer(BuildPhase::Pushing, 3 << 19, 10 << 20);
        assert_eq!(
            sentence(&status),
            "pushing the artifact: 1.5 MiB of 10.0 MiB, 15 %"
        );
        let status = BuildStatus::at(BuildPhase::Verity);
        assert_eq!(sentence(&status), "computing the root disk's hash tree");
    }
}

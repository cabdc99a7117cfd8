use std::collections::BTreeSet;
use std::sync::Arc;

use assay_crds::conditions;
use assay_crds::v1alpha1::measured_image::{
    BuildCache, BuildJob, BuildPhase, BuildResources, BuildStatus, DigestState, LaunchShapes,
    LifecycleState, MeasuredImageReason as Reason,
};
use assay_crds::v1alpha1::{self as api, LocalReference, MeasuredImage, MeasuredImageStatus};
use assay_image::igvm::{
    EncodeIgvmError, IgvmKernel, IgvmSpec, MeasureSelfContainedError, encode_igvm,
    measure_self_contained,
};
use assay_image::recipe::{EXIT_NO_CACHE, EXIT_NO_CREDENTIALS, EXIT_UNBUILDABLE, Recipe};
use assay_measure::igvm::{IgvmLaunch, measure_igvm_snp};
use assay_measure::{MeasurementInputs, measure_snp};
use assay_tee::cpu::CpuModel;
use assay_tee::igvm::parse_igvm;
use assay_tee::ovmf::{Section, SectionKind};
use assay_tee::{BootMethod, GuestPolicy, LaunchShape, Tee};
use assay_workload::artifact::MeasuredArtifact;
use assay_workload::shapes;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::{
    ConfigMap, ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use self::synthetic_firmware::{SyntheticFirmware, build_igvm_firmware};
use super::build_job::{build_job, job_name, parse_report};
use super::observe::Observed;
use super::*;
use crate::artifact::ArtifactState;
use crate::fixtures::{self, REFERENCE, at};
use crate::plan::{Plan, Requeue};

#[path = "../../../../crates/measure/tests/support/synthetic_firmware.rs"]
mod synthetic_firmware;

const BUILDER: &str = "registry.test/assay-builder@sha256:ee";

fn builder() -> Builder {
    Builder {
        image: BUILDER.to_owned(),
        plain_http: vec!["registry.test:5000".to_owned()],
    }
}

fn running() -> BuildProgress {
    at_phase(BuildPhase::Running)
}

fn at_phase(phase: BuildPhase) -> BuildProgress {
    BuildProgress::Running(Running::at(phase))
}

fn observed(build: BuildProgress, artifact: impl Into<Option<ArtifactState>>) -> Observed {
    Observed {
        recipe: None,
        build,
        rebuild: BuildProgress::Absent,
        artifact: artifact.into(),
        requested: BTreeSet::from([shape(Tee::SimulatedSnp, 2)]),
        used_by: 1,
        jobs: Vec::new(),
        builder: builder(),
    }
}

fn shape(tee: Tee, vcpus: u32) -> LaunchShape {
    shapes::shape(tee, BootMethod::DirectKernel, vcpus, "EPYC-v4").unwrap()
}

fn measured() -> ArtifactState {
    ArtifactState::Measured(fixtures::measured_artifact())
}

fn failed(reason: Reason) -> ArtifactState {
    ArtifactState::Failed {
        reason,
        message: "because".to_owned(),
        retry_at: at(1_600),
    }
}

fn planned(image: &MeasuredImage, observed: &Observed) -> Plan<MeasuredImageStatus> {
    plan(image, observed, at(1_500))
}

fn condition(plan: &Plan<MeasuredImageStatus>, type_: &str) -> (String, String) {
    let condition = conditions::find(&plan.status.conditions, type_).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

fn is(plan: &Plan<MeasuredImageStatus>, type_: &str, status: &str, reason: Reason) {
    assert_eq!(
        condition(plan, type_),
        (status.to_owned(), reason.as_str().to_owned()),
        "{type_}"
    );
}

fn kinds(plan: &Plan<MeasuredImageStatus>) -> Vec<&str> {
    plan.writes
        .iter()
        .map(|write| write.resource.kind.as_str())
        .collect()
}

#[test]
fn a_build_starts_once_and_is_not_repeated_after_success() {
    let mut image = fixtures::new_image();
    let first = planned(&image, &observed(BuildProgress::Absent, None));
    assert_eq!(kinds(&first), ["ConfigMap", "Job"]);
    is(&first, "Ready", "False", Reason::Building);
    is(&first, "Reconciling", "True", Reason::Building);

    let recipe: ConfigMap = serde_json::from_value(first.writes[0].body.clone()).unwrap();
    let document = &recipe.data.as_ref().unwrap()["recipe.json"];
    Recipe::parse(document.as_bytes()).unwrap();
    let mut running = observed(running(), None);
    running.recipe = Some(Arc::new(recipe));
    image.status = Some(first.status);
    let second = planned(&image, &running);
    assert!(second.writes.is_empty());
    assert!(second.events.is_empty());

    let built = BuildProgress::Ended(BuildReport::Built(REFERENCE.to_owned()));
    let done = planned(&image, &observed(built, measured()));
    is(&done, "Ready", "True", Reason::Published);
    is(&done, "Stalled", "False", Reason::UpToDate);
    image.status = Some(done.status);
    let later = planned(&image, &observed(BuildProgress::Absent, measured()));
    assert!(
        later.writes.is_empty(),
        "a Job that was deleted after success is not made again"
    );
    assert!(status::is_current(&image, &later.status), "silence");
    assert!(later.events.is_empty());
}

/// An image whose artifact is built twice, and what is seen of it.
fn twice(build: BuildProgress, rebuild: BuildProgress) -> (MeasuredImage, Observed) {
    let mut image = fixtures::new_image();
    let source = image.spec.source.build.as_mut().unwrap();
    source.verify_rebuild = true;
    let known = super::observe::artifact_reference(&image, &build, &rebuild);
    let mut seen = observed(build, known.map(|_| measured()));
    seen.rebuild = rebuild;
    (image, seen)
}

fn built(reference: &str) -> BuildProgress {
    BuildProgress::Ended(BuildReport::Built(reference.to_owned()))
}

#[test]
fn two_jobs_build_where_that_is_asked_for() {
    let (image, seen) = twice(BuildProgress::Absent, BuildProgress::Absent);
    let plan = planned(&image, &seen);
    assert_eq!(kinds(&plan), ["ConfigMap", "Job", "Job"]);
    is(&plan, "Reproducible", "False", Reason::Building);
    let jobs: Vec<Job> = plan.writes[1..]
        .iter()
        .map(|write| serde_json::from_value(write.body.clone()).unwrap())
        .collect();
    let pod = |job: &Job| job.spec.clone().unwrap().template.spec.unwrap();
    let (first, again) = (pod(&jobs[0]), pod(&jobs[1]));
    assert_ne!(jobs[0].metadata.name, jobs[1].metadata.name);
    assert!(jobs[1].metadata.name.as_ref().unwrap().contains("-again-"));
    let args = |pod: &k8s_openapi::api::core::v1::PodSpec| pod.containers[0].args.clone().unwrap();
    assert!(args(&first).contains(&"--push".to_owned()));
    assert!(!args(&again).contains(&"--push".to_owned()));
    assert!(args(&again).contains(&"--digest-only".to_owned()));
    assert_eq!(first.volumes, again.volumes);
    assert!(first.affinity.is_none());
    assert!(again.affinity.unwrap().pod_anti_affinity.is_some());

    // Both run, and neither is made again.
    let (image, seen) = twice(running(), running());
    assert_eq!(kinds(&planned(&image, &seen)), ["ConfigMap"]);
    // One was deleted.
    let (image, seen) = twice(built(REFERENCE), BuildProgress::Absent);
    assert_eq!(kinds(&planned(&image, &seen)), ["ConfigMap", "Job"]);
}

fn with_settings(change: impl FnOnce(&mut BuildJob)) -> MeasuredImage {
    let mut image = fixtures::new_image();
    let mut job = BuildJob::default();
    change(&mut job);
    image.spec.build_job = Some(job);
    image
}

/// A Job of `image` as the API server has it.
fn job_of(image: &MeasuredImage) -> Arc<Job> {
    let source = image.spec.source.build.as_ref().unwrap();
    let mut job = build_job(image, source, &builder());
    job.metadata.uid = Some("uid-of-job".to_owned());
    Arc::new(job)
}

#[test]
fn a_suspended_image_ends_its_build_and_starts_none() {
    let image = with_settings(|job| job.suspend = true);
    let plan = planned(&image, &observed(BuildProgress::Absent, None));
    assert!(plan.writes.is_empty() && plan.deletes.is_empty());
    is(&plan, "Ready", "False", Reason::BuildSuspended);

    let mut seen = observed(running(), None);
    seen.jobs = vec![job_of(&fixtures::new_image())];
    let plan = planned(&image, &seen);
    assert_eq!(plan.deletes.len(), 1);
    assert_eq!(plan.deletes[0].uid, "uid-of-job");
    assert!(plan.writes.is_empty());
    is(&plan, "Ready", "False", Reason::BuildSuspended);
    assert!(plan.events.iter().all(|event| !event.warning));

    // It is resumed under the same settings.
    assert_eq!(
        job_of(&image).metadata.annotations,
        job_of(&fixtures::new_image()).metadata.annotations
    );
    // What was built is used.
    let done = planned(&image, &observed(built(REFERENCE), measured()));
    is(&done, "Ready", "True", Reason::Published);
    // So is what failed: nothing would run anyway.
    let failed = BuildProgress::Ended(BuildReport::Failed("because".to_owned()));
    let plan = planned(&image, &observed(failed, None));
    is(&plan, "Ready", "False", Reason::BuildFailed);
    // The second build waits too.
    let (mut twice, seen) = twice(built(REFERENCE), BuildProgress::Absent);
    twice.spec.build_job = image.spec.build_job;
    let plan = planned(&twice, &seen);
    assert!(plan.writes.is_empty());
    is(&plan, "Ready", "False", Reason::BuildSuspended);
}

#[test]
fn a_job_of_other_settings_is_ended_and_made_again() {
    let resources = |memory: &str| BuildResources {
        limits: [("memory".to_owned(), Quantity(memory.to_owned()))].into(),
        ..BuildResources::default()
    };
    let more = with_settings(|job| job.resources = Some(resources("8Gi")));
    let mut other_secret = fixtures::new_image();
    other_secret.spec.pull_secret_ref = Some(LocalReference {
        name: "pull".to_owned(),
    });
    let before = job_of(&fixtures::new_image());
    let mut ended = before.as_ref().clone();
    ended.status = ended_job("Failed", "").status;
    let ended = Arc::new(ended);
    let failed = || BuildProgress::Ended(BuildReport::Failed("because".to_owned()));
    for image in [&more, &other_secret] {
        for (build, job) in [(running(), &before), (failed(), &ended)] {
            let mut seen = observed(build, None);
            seen.jobs = vec![Arc::clone(job)];
            let plan = planned(image, &seen);
            assert_eq!(plan.deletes.len(), 1);
            assert!(plan.writes.is_empty());
            is(&plan, "Ready", "False", Reason::Building);
            let message = conditions::find(&plan.status.conditions, "Ready").unwrap();
            assert!(message.message.contains("has changed"), "{message:?}");
        }
        let plan = planned(image, &observed(BuildProgress::Absent, None));
        assert_eq!(kinds(&plan), ["ConfigMap", "Job"]);
    }
    let keeps = |image: &MeasuredImage, build, job: &Arc<Job>| {
        let mut seen = observed(build, None);
        seen.jobs = vec![Arc::clone(job)];
        assert!(planned(image, &seen).deletes.is_empty());
    };
    // The same settings; an earlier operator's Job; another's; one that goes.
    keeps(&fixtures::new_image(), running(), &before);
    let changed = |change: fn(&mut Job)| {
        let mut job = before.as_ref().clone();
        change(&mut job);
        Arc::new(job)
    };
    keeps(
        &more,
        running(),
        &changed(|job| job.metadata.annotations = None),
    );
    let foreign = changed(|job| job.metadata.owner_references = None);
    keeps(&more, BuildProgress::Foreign, &foreign);
    let going = changed(|job| job.metadata.deletion_timestamp = Some(Time(fixtures::at(1))));
    keeps(&more, BuildProgress::Ending, &going);
    // What was built is used.
    keeps(
        &more,
        built(REFERENCE),
        &changed(|job| job.status = ended_job("Complete", "").status),
    );
}

#[test]
fn a_build_says_how_far_it_is() {
    let mut image = fixtures::new_image();
    let first = planned(&image, &observed(at_phase(BuildPhase::PullingRootfs), None));
    is(&first, "Ready", "False", Reason::Building);
    assert_eq!(
        first.status.build,
        Some(BuildStatus::at(BuildPhase::PullingRootfs))
    );
    assert_eq!(first.requeue, Requeue::At(at(1_505)));
    let notes: Vec<&str> = first
        .events
        .iter()
        .map(|note| note.message.as_str())
        .collect();
    assert!(notes.contains(&"pulling the workload's image"), "{notes:?}");
    image.status = Some(first.status);

    let again = planned(&image, &observed(at_phase(BuildPhase::PullingRootfs), None));
    assert!(again.events.is_empty());
    assert!(status::is_current(&image, &again.status), "silence");

    let mut running = Running::at(BuildPhase::Pushing);
    running.status = BuildStatus::transfer(BuildPhase::Pushing, 1 << 20, 4 << 20);
    let later = planned(&image, &observed(BuildProgress::Running(running), None));
    let ready = conditions::find(&later.status.conditions, "Ready").unwrap();
    let sentence = ": pushing the artifact: 1.0 MiB of 4.0 MiB, 25 %";
    assert!(ready.message.ends_with(sentence), "{}", ready.message);
    assert_eq!(later.events.len(), 1);
    assert!(!later.events[0].warning);
    image.status = Some(later.status);

    let done = planned(&image, &observed(built(REFERENCE), measured()));
    assert_eq!(done.status.build, None);
    let (_, seen) = twice(built(REFERENCE), at_phase(BuildPhase::Verity));
    let plan = planned(&image, &seen);
    assert_eq!(plan.status.build, Some(BuildStatus::at(BuildPhase::Verity)));
}

#[test]
fn a_build_that_cannot_start_says_why() {
    let mut stuck = Running::at(BuildPhase::Pending);
    stuck.blocked = Some("its pod cannot be scheduled: no claim".to_owned());
    let build = BuildProgress::Running(stuck);
    let plan = planned(&fixtures::new_image(), &observed(build.clone(), None));
    is(&plan, "Ready", "False", Reason::BuildBlocked);
    is(&plan, "Reconciling", "True", Reason::BuildBlocked);
    assert!(plan.events[0].warning);
    assert!(plan.events[0].message.contains("no claim"));
    assert!(plan.deletes.is_empty());
    let (image, seen) = twice(built(REFERENCE), build);
    let plan = planned(&image, &seen);
    is(&plan, "Ready", "False", Reason::BuildBlocked);
}

#[test]
fn settings_reach_the_builder() {
    let mut image = with_settings(|job| {
        job.resources = Some(BuildResources {
            requests: [("cpu".to_owned(), Quantity("2".to_owned()))].into(),
            limits: [("ephemeral-storage".to_owned(), Quantity("9Gi".to_owned()))].into(),
        });
        job.cache = Some(BuildCache {
            claim_name: "images".to_owned(),
            size_limit: Some(Quantity("2Gi".to_owned())),
        });
    });
    let source = image.spec.source.build.as_mut().unwrap();
    source.verify_rebuild = true;
    let name = |name: &str| LocalReference {
        name: name.to_owned(),
    };
    source.output.secret_ref = Some(name("push"));
    image.spec.pull_secret_ref = Some(name("pull"));
    let source = image.spec.source.build.as_ref().unwrap();
    let pod = |job: &Job| job.spec.clone().unwrap().template.spec.unwrap();
    let first = pod(&build_job(&image, source, &builder()));
    let resources = first.containers[0].resources.clone().unwrap();
    let amounts = |amounts: Option<std::collections::BTreeMap<String, Quantity>>| {
        let amounts = amounts.unwrap().into_iter();
        amounts
            .map(|(name, amount)| format!("{name}={}", amount.0))
            .collect::<Vec<_>>()
    };
    assert_eq!(amounts(resources.requests), ["cpu=2", "memory=256Mi"]);
    assert_eq!(
        amounts(resources.limits),
        ["ephemeral-storage=9Gi", "memory=1Gi"]
    );
    let args = first.containers[0].args.as_ref().unwrap().join(" ");
    assert!(
        args.ends_with(
            "--docker-config /etc/assay/docker/config.json --pull-docker-config \
             /etc/assay/pull/config.json --cache /cache --cache-limit 2147483648"
        ),
        "{args}"
    );
    let volumes = first.volumes.unwrap();
    let claim = volumes
        .iter()
        .find_map(|volume| volume.persistent_volume_claim.as_ref());
    assert_eq!(claim.unwrap().claim_name, "images");
    let secrets: Vec<_> = volumes
        .iter()
        .filter_map(|volume| volume.secret.as_ref()?.secret_name.as_deref())
        .collect();
    assert_eq!(secrets, ["push", "pull"]);

    // Who checks pulls for itself.
    let again = super::rebuild::rebuild_job(&image, source, &builder());
    assert!(!super::build_job::is_outdated(&image, &again));
    let again = pod(&again);
    assert!(
        !again.containers[0]
            .args
            .as_ref()
            .unwrap()
            .join(" ")
            .contains("cache")
    );
    assert_eq!(again.volumes.unwrap().len(), volumes.len() - 1);
}

#[test]
fn an_artifact_is_used_once_two_builds_agree() {
    let other = format!("{}{}", &REFERENCE[..REFERENCE.len() - 4], "0000");
    let failed = || BuildProgress::Ended(BuildReport::Failed("because".to_owned()));
    let rows = [
        (running(), Reason::VerifyingRebuild, "Reconciling"),
        (
            BuildProgress::Absent,
            Reason::VerifyingRebuild,
            "Reconciling",
        ),
        (failed(), Reason::RebuildFailed, "Stalled"),
        (built(&other), Reason::NotReproducible, "Stalled"),
    ];
    for (rebuild, reason, state) in rows {
        let (image, seen) = twice(built(REFERENCE), rebuild);
        assert!(seen.artifact.is_none(), "{reason:?}");
        let plan = planned(&image, &seen);
        is(&plan, "Reproducible", "False", reason);
        is(&plan, "ArtifactReady", "False", reason);
        is(&plan, "Ready", "False", reason);
        is(&plan, state, "True", reason);
        assert_eq!(plan.status.artifact, None);
        assert!(plan.status.launch_digests.is_empty());
    }
    let (mut image, seen) = twice(built(REFERENCE), built(REFERENCE));
    let done = planned(&image, &seen);
    is(&done, "Reproducible", "True", Reason::Reproduced);
    is(&done, "Ready", "True", Reason::Published);
    // Both Jobs may go.
    image.status = Some(done.status);
    let later = planned(&image, &observed(BuildProgress::Absent, measured()));
    is(&later, "Reproducible", "True", Reason::Reproduced);
    assert!(later.writes.is_empty());
    assert!(status::is_current(&image, &later.status), "silence");
}

#[test]
fn a_single_build_says_nothing_of_another() {
    let image = fixtures::new_image();
    let done = planned(&image, &observed(built(REFERENCE), measured()));
    assert!(conditions::find(&done.status.conditions, "Reproducible").is_none());
}

#[test]
fn rows_are_what_the_measurement_says() {
    let image = fixtures::new_oci_image();
    let mut seen = observed(BuildProgress::Absent, measured());
    seen.requested.insert(shape(Tee::Snp, 4));
    let plan = planned(&image, &seen);
    let ids: Vec<&str> = plan
        .status
        .launch_digests
        .iter()
        .map(|row| row.id.as_str())
        .collect();
    assert_eq!(
        ids,
        [
            "ovmf-222222222222.EPYC-v4.2.0x1.SimulatedSNP",
            "ovmf-222222222222.EPYC-v4.4.0x1.SNP"
        ]
    );
    let inputs = fixtures::measurement_inputs();
    for (row, shape) in plan
        .status
        .launch_digests
        .iter()
        .zip([shape(Tee::SimulatedSnp, 2), shape(Tee::Snp, 4)])
    {
        assert_eq!(
            row.digest,
            measure_snp(&inputs, &shape).unwrap().digest.to_string()
        );
    }
    assert_eq!(plan.status.digests.unwrap().summary, "2/2");
    assert_eq!(plan.status.used_by, 1);
}

#[test]
fn listed_shapes_are_measured_for_snp_and_for_what_deployments_use() {
    let listed = LaunchShapes {
        vcpus: vec![1, 2],
        cpu_models: vec!["EPYC-Milan".to_owned()],
        boot: Vec::new(),
    };
    assert_eq!(shapes::wanted(&listed, &BTreeSet::new()).len(), 2);
    let simulated = BTreeSet::from([shape(Tee::SimulatedSnp, 2)]);
    let wanted = shapes::wanted(&listed, &simulated);
    assert_eq!(wanted.len(), 5);
    assert_eq!(
        wanted[0],
        shape(Tee::SimulatedSnp, 2),
        "what is asked for comes first"
    );
}

#[test]
fn listed_boot_methods_multiply_the_shapes_and_mark_their_rows() {
    let both = [api::BootMethod::DirectKernel, api::BootMethod::Igvm];
    let listed = LaunchShapes {
        vcpus: vec![1, 2],
        cpu_models: vec!["EPYC-Milan".to_owned()],
        boot: both.to_vec(),
    };
    let wanted = shapes::wanted(&listed, &BTreeSet::new());
    let ids: Vec<_> = wanted
        .iter()
        .map(|shape| shapes::row_id("ovmf-1", shape))
        .collect();
    assert_eq!(
        ids,
        [
            "ovmf-1.EPYC-Milan.1.0x1.SNP",
            "ovmf-1.EPYC-Milan.2.0x1.SNP",
            "ovmf-1.EPYC-Milan.1.0x1.SNP.IGVM",
            "ovmf-1.EPYC-Milan.2.0x1.SNP.IGVM",
        ]
    );
}

/// Each way to boot has a digest of its own, or a sentence.
#[test]
fn an_igvm_shape_is_measured_by_its_file_alone() {
    let uki = b"uki".to_vec().into();
    let sections = [
        section(0x80_0000, SectionKind::SecMem),
        section(0x80_d000, SectionKind::SnpSecrets),
        section(0x80_e000, SectionKind::Cpuid),
        section(0x81_0000, SectionKind::KernelHashes),
    ];
    let firmware = SyntheticFirmware {
        pages: 3,
        filler: 0xf4,
        sections: &sections,
        reset_eip: 0x80_b004,
        hashes_table_gpa: 0x81_0c00,
    };
    let firmware = build_igvm_firmware(&firmware, &[[0x81_3000, 0x1000, 0x200]]).into();
    let igvm = measure_self_contained(&firmware, &uki).unwrap();
    let shape = LaunchShape {
        boot: BootMethod::Igvm,
        ..shape(Tee::SimulatedSnp, 2)
    };
    let state = |igvm_digest, no_igvm_file| {
        let inputs = MeasurementInputs {
            igvm_digest,
            ..fixtures::measurement_inputs()
        };
        let status = fixtures::artifact_status();
        let artifact = MeasuredArtifact::new(status, inputs, no_igvm_file);
        let state = ArtifactState::Measured(Arc::new(artifact));
        Observed {
            requested: BTreeSet::from([shape.clone()]),
            ..observed(BuildProgress::Absent, state)
        }
    };
    let image = fixtures::new_oci_image();
    let plan = planned(&image, &state(Some(igvm), None));
    let [row] = plan.status.launch_digests.as_slice() else {
        panic!("{:?}", plan.status.launch_digests)
    };
    assert_eq!(row.id, "ovmf-222222222222.EPYC-v4.2.0x1.SimulatedSNP.IGVM");
    assert_eq!(row.boot, api::BootMethod::Igvm);
    let file = encode_igvm(&IgvmSpec {
        firmware: &firmware,
        kernel: IgvmKernel::Embedded(&uki),
        vcpus: shape.vcpus,
        cpu_signature: CpuModel::by_name("EPYC-v4").unwrap().signature(),
        guest_features: shape.guest_features,
        policy: GuestPolicy::default(),
    });
    let file = file.unwrap().to_bytes();
    let launch = IgvmLaunch::Qemu {
        vcpus: shape.vcpus,
        reset: None,
    };
    let measured = measure_igvm_snp(&parse_igvm(&file).unwrap(), &launch).unwrap();
    assert_eq!(row.digest, measured.digest.to_string());

    let inputs = plan.status.measurement_inputs.unwrap();
    assert_eq!(inputs.igvm_digest, Some(igvm.to_string()));

    let generic = MeasureSelfContainedError::Encode(EncodeIgvmError::UnverifyingFirmware);
    let plan = planned(&image, &state(None, Some(generic)));
    assert!(plan.status.launch_digests.is_empty());
    is(&plan, "Ready", "False", Reason::MeasureFailed);
    let ready = conditions::find(&plan.status.conditions, "Ready").unwrap();
    assert_eq!(
        ready.message,
        "boot IGVM: make an IGVM file of firmware and UKI: the firmware takes a UKI from an IGVM \
         file, but starts it with a command line that the host hands over beside the file, which \
         no launch digest shows; use the AmdSev build of OVMF"
    );
}

const fn section(gpa: u32, kind: SectionKind) -> Section {
    Section {
        gpa,
        size: 0x1000,
        kind,
    }
}

#[test]
fn an_unknown_cpu_model_costs_only_its_own_rows() {
    let mut image = fixtures::new_oci_image();
    image.spec.shapes = LaunchShapes {
        vcpus: vec![2],
        cpu_models: vec!["EPYC-v4".to_owned(), "EPYC-v99".to_owned()],
        boot: Vec::new(),
    };
    let plan = planned(&image, &observed(BuildProgress::Absent, measured()));
    assert_eq!(
        plan.status.launch_digests.len(),
        2,
        "SNP and simulated, of the known model"
    );
    is(&plan, "Measured", "False", Reason::UnknownCpuModel);
    let measured = conditions::find(&plan.status.conditions, "Measured").unwrap();
    assert!(
        measured.message.contains("EPYC-v99"),
        "{}",
        measured.message
    );
    is(&plan, "Stalled", "True", Reason::UnknownCpuModel);

    let mut build = fixtures::new_image();
    build.spec.shapes = image.spec.shapes;
    for (artifact, reason) in [
        (observed(running(), None), Reason::Building),
        (
            observed(
                BuildProgress::Ended(BuildReport::Built(REFERENCE.to_owned())),
                failed(Reason::PullFailed),
            ),
            Reason::PullFailed,
        ),
    ] {
        let plan = planned(&build, &artifact);
        is(&plan, "Measured", "False", Reason::UnknownCpuModel);
        is(&plan, "Ready", "False", reason);
        is(&plan, "Reconciling", "True", reason);
    }
}

#[test]
fn firmware_without_a_kernel_hashes_section_is_refused_by_name() {
    let mut inputs: MeasurementInputs = fixtures::measurement_inputs();
    inputs.firmware.sections[0].kind = SectionKind::SecMem;
    let artifact = MeasuredArtifact::new(fixtures::artifact_status(), inputs, None);
    let state = ArtifactState::Measured(Arc::new(artifact));
    let plan = planned(
        &fixtures::new_oci_image(),
        &observed(BuildProgress::Absent, state),
    );
    assert!(plan.status.launch_digests.is_empty());
    is(&plan, "Ready", "False", Reason::MeasureFailed);
    let ready = conditions::find(&plan.status.conditions, "Ready").unwrap();
    assert!(ready.message.contains("KERNEL_HASHES"), "{}", ready.message);
}

#[test]
fn revocation_needs_nothing_but_the_specification() {
    let mut image = fixtures::image();
    image.spec.lifecycle.state = LifecycleState::Revoked;
    image.spec.lifecycle.reason = Some("CVE-2026-1".to_owned());
    for artifact in [
        measured(),
        ArtifactState::Pulling,
        failed(Reason::PullFailed),
    ] {
        let plan = planned(&image, &observed(BuildProgress::Absent, artifact));
        assert_eq!(plan.status.launch_digests[0].state, DigestState::Revoked);
        assert_eq!(plan.status.digests.as_ref().unwrap().summary, "0/1");
        is(&plan, "Ready", "False", Reason::Revoked);
    }
    image.spec.lifecycle.state = LifecycleState::Deprecated;
    let plan = planned(&image, &observed(BuildProgress::Absent, measured()));
    is(&plan, "Ready", "True", Reason::Published);
}

#[test]
fn a_verified_artifact_survives_the_registry_s_absence() {
    let image = fixtures::image();
    for artifact in [ArtifactState::Pulling, failed(Reason::PullFailed)] {
        let plan = planned(&image, &observed(BuildProgress::Absent, artifact));
        assert_eq!(plan.status.launch_digests, [fixtures::row()]);
        is(&plan, "Ready", "True", Reason::Published);
    }
    // What was never measured has to wait.
    let mut more = observed(BuildProgress::Absent, failed(Reason::PullFailed));
    more.requested.insert(shape(Tee::SimulatedSnp, 8));
    let plan = planned(&image, &more);
    is(&plan, "Measured", "False", Reason::PullFailed);
    is(&plan, "ArtifactReady", "True", Reason::ArtifactVerified);
    assert_eq!(plan.requeue, Requeue::At(at(1_600)));
    // What contradicts itself is refused, whatever was said before.
    let plan = planned(
        &image,
        &observed(BuildProgress::Absent, failed(Reason::ArtifactInvalid)),
    );
    is(&plan, "Ready", "False", Reason::ArtifactInvalid);
}

/// What is published is enough to measure again, and stays while the artifact is
/// read again.
#[test]
fn measurement_inputs_are_published() {
    let mut image = fixtures::new_oci_image();
    let plan = planned(&image, &observed(BuildProgress::Absent, measured()));
    let published = serde_json::to_value(&plan.status.measurement_inputs).unwrap();
    let inputs: MeasurementInputs = serde_json::from_value(published).unwrap();
    assert_eq!(inputs, fixtures::measurement_inputs());
    let before = plan.status.measurement_inputs.clone();
    image.status = Some(plan.status);
    let later = planned(
        &image,
        &observed(BuildProgress::Absent, ArtifactState::Pulling),
    );
    assert_eq!(later.status.measurement_inputs, before);
}

#[test]
fn an_obstacle_is_one_reason() {
    type Change = fn(&mut MeasuredImage);
    let build = |report| BuildProgress::Ended(report);
    let table: [(&str, Change, Observed, Reason, &str); 8] = [
        (
            "reserved command line",
            |i| {
                let build = i.spec.source.build.as_mut().unwrap();
                build.extra_cmdline = Some("init=/bin/sh".to_owned());
            },
            observed(BuildProgress::Absent, None),
            Reason::SpecInvalid,
            "init=/bin/sh",
        ),
        (
            "name",
            |i| i.metadata.name = Some("x".repeat(64)),
            observed(BuildProgress::Absent, None),
            Reason::SpecInvalid,
            "metadata.name",
        ),
        (
            "shapes",
            |i| {
                i.spec.shapes = LaunchShapes {
                    vcpus: (1..=13).collect(),
                    cpu_models: (0..5).map(|n| format!("EPYC-{n}")).collect(),
                    boot: Vec::new(),
                };
            },
            observed(BuildProgress::Absent, None),
            Reason::SpecInvalid,
            "spec.shapes lists 65",
        ),
        (
            "half of the shapes",
            |i| i.spec.shapes.vcpus = vec![1],
            observed(BuildProgress::Absent, None),
            Reason::SpecInvalid,
            "cpuModels",
        ),
        (
            "failed build",
            |_| {},
            observed(build(BuildReport::Failed("no space left".to_owned())), None),
            Reason::BuildFailed,
            "no space left",
        ),
        (
            "an artifact elsewhere",
            |_| {},
            observed(
                build(BuildReport::Built("other.test/x@sha256:00".to_owned())),
                None,
            ),
            Reason::ArtifactInvalid,
            "other.test",
        ),
        (
            "an older Job",
            |_| {},
            observed(BuildProgress::Foreign, None),
            Reason::Pulling,
            "earlier MeasuredImage",
        ),
        (
            "registry",
            |_| {},
            observed(
                build(BuildReport::Built(REFERENCE.to_owned())),
                failed(Reason::PullFailed),
            ),
            Reason::PullFailed,
            "because",
        ),
    ];
    for (name, change, observed, reason, hint) in table {
        let mut image = fixtures::new_image();
        change(&mut image);
        let plan = planned(&image, &observed);
        assert!(plan.writes.is_empty(), "{name}");
        is(&plan, "Ready", "False", reason);
        let ready = conditions::find(&plan.status.conditions, "Ready").unwrap();
        assert!(ready.message.contains(hint), "{name}: {}", ready.message);
    }
}

#[test]
fn only_an_artifact_in_the_output_repository_is_read() {
    let image = fixtures::new_image();
    let read =
        |build: &BuildProgress| observe::artifact_reference(&image, build, &BuildProgress::Absent);
    assert_eq!(read(&built(REFERENCE)).as_deref(), Some(REFERENCE));
    assert_eq!(read(&built("other.test/x@sha256:00")), None);
    assert_eq!(read(&built("registry.test/measured/web:tag")), None);
    assert_eq!(read(&running()), None);
}

#[test]
fn the_job_is_named_by_its_source_and_needs_nothing() {
    let image = fixtures::new_image();
    let mut source = fixtures::build_source();
    let name = job_name(&image, &source);
    assert!(
        name.starts_with("web-1-build-") && name.len() == "web-1-build-".len() + 8,
        "{name}"
    );
    let mut long = image.clone();
    long.metadata.name = Some("a.b-".repeat(15));
    assert!(job_name(&long, &source).len() <= 63);

    source.output.secret_ref = Some(LocalReference {
        name: "push".to_owned(),
    });
    assert_ne!(job_name(&image, &source), name);
    let job = build_job(&image, &source, &builder());
    let spec = job.spec.unwrap();
    let rules = spec.pod_failure_policy.unwrap().rules;
    let disrupted = &rules[0].on_pod_conditions.as_ref().unwrap()[0];
    assert_eq!(rules[0].action, "Ignore");
    assert_eq!(disrupted.type_, "DisruptionTarget");
    assert_eq!(rules[1].action, "FailJob");
    assert_eq!(
        rules[1].on_exit_codes.as_ref().unwrap().values,
        [EXIT_UNBUILDABLE, EXIT_NO_CREDENTIALS, EXIT_NO_CACHE].map(i32::from)
    );
    let pod = spec.template.spec.unwrap();
    let docker = pod.volumes.as_ref().unwrap().last().unwrap();
    assert_eq!(
        docker.secret.as_ref().unwrap().optional,
        Some(true),
        "the builder says what is missing, the kubelet only waits"
    );
    assert_eq!(pod.automount_service_account_token, Some(false));
    let container = &pod.containers[0];
    let security = container.security_context.as_ref().unwrap();
    assert_eq!(security.read_only_root_filesystem, Some(true));
    assert_eq!(security.allow_privilege_escalation, Some(false));
    assert_eq!(
        container.args.as_ref().unwrap().join(" "),
        "build --recipe /etc/assay/recipe/recipe.json --agent /usr/lib/assay/assay-agent --push \
         --scratch /scratch --builder-id oci://registry.test/assay-builder@sha256:ee \
         --result-file /dev/termination-log --progress-port 8082 --plain-http registry.test:5000 --docker-config \
         /etc/assay/docker/config.json"
    );
}

fn ended_job(type_: &str, message: &str) -> Job {
    Job {
        metadata: fixtures::metadata("web-1-build-0"),
        status: Some(JobStatus {
            conditions: Some(vec![JobCondition {
                type_: type_.to_owned(),
                status: "True".to_owned(),
                message: Some(message.to_owned()),
                ..JobCondition::default()
            }]),
            ..JobStatus::default()
        }),
        ..Job::default()
    }
}

fn said(seconds: i64, exit_code: i32, message: &str) -> Pod {
    let terminated = ContainerStateTerminated {
        exit_code,
        message: Some(message.to_owned()),
        finished_at: Some(Time(Timestamp::from_second(seconds).unwrap())),
        ..ContainerStateTerminated::default()
    };
    Pod {
        status: Some(PodStatus {
            container_statuses: Some(vec![ContainerStatus {
                state: Some(ContainerState {
                    terminated: Some(terminated),
                    ..ContainerState::default()
                }),
                ..ContainerStatus::default()
            }]),
            ..PodStatus::default()
        }),
        ..Pod::default()
    }
}

#[test]
fn the_youngest_words_count() {
    let job = ended_job("Complete", "");
    let pods = [
        said(
            30,
            0,
            &format!(r#"{{"reference":"{REFERENCE}","manifestDigest":"sha256:dd"}}"#),
        ),
        said(20, 1, r#"{"error":"network"}"#),
    ];
    assert_eq!(
        parse_report(true, &job, &pods),
        BuildReport::Built(REFERENCE.to_owned())
    );
    assert!(
        matches!(parse_report(true, &job, &[]), BuildReport::Failed(why) if why.contains("lost"))
    );
    assert!(matches!(
        parse_report(true, &job, &[said(30, 0, "noise")]),
        BuildReport::Failed(_)
    ));

    let job = ended_job("Failed", "Job was active longer than specified deadline");
    let pods = [
        said(10, 1, "log line"),
        said(20, 1, r#"{"error":"no such image"}"#),
    ];
    let words = |pods: &[Pod]| match parse_report(false, &job, pods) {
        BuildReport::Failed(why) => why,
        BuildReport::Built(reference) => reference,
    };
    assert!(words(&pods).starts_with("no such image; delete Job web-1-build-0"));
    assert!(
        words(&pods[..1])
            .starts_with("the builder ended with status 1 and these lines:\nlog line\n; delete"),
        "{}",
        words(&pods[..1])
    );
    assert!(words(&[]).starts_with("Job was active longer"));
    let mut killed = said(20, 137, "");
    let status = killed.status.as_mut().unwrap();
    let state = status.container_statuses.as_mut().unwrap()[0]
        .state
        .as_mut();
    state.unwrap().terminated.as_mut().unwrap().reason = Some("OOMKilled".to_owned());
    let said_of = words(&[killed]);
    assert!(
        said_of.contains("spec.buildJob.resources.limits.memory"),
        "{said_of}"
    );
    let evicted = Pod {
        status: Some(PodStatus {
            reason: Some("Evicted".to_owned()),
            message: Some("the node was low on ephemeral-storage".to_owned()),
            ..PodStatus::default()
        }),
        ..Pod::default()
    };
    let said_of = words(&[evicted]);
    assert!(
        said_of.starts_with("its pod is gone: Evicted: the node was low"),
        "{said_of}"
    );
    let unbuildable = said(20, EXIT_UNBUILDABLE.into(), r#"{"error":"no kernel"}"#);
    let words = words(&[said(10, 1, "log line"), unbuildable]);
    assert!(
        words.starts_with("no kernel; spec.source is immutable: create another MeasuredImage"),
        "{words}"
    );
}

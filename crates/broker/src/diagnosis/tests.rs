use assay_crds::v1alpha1::BootMethod;

use super::*;
use crate::fixtures;

fn mismatch(observed: LaunchDigest) -> Mismatch {
    Mismatch {
        observed,
        image: Arc::new(fixtures::measured_image(fixtures::IMAGE, 1)),
        machine: fixtures::deployment().spec.machine,
    }
}

fn observed(fill: u8, vcpus: u32) -> LaunchDigest {
    fixtures::launch_measured(fill, vcpus, &fixtures::instance()).launch_digest()
}

#[test]
fn causes_are_named() {
    let images = [
        Arc::new(fixtures::measured_image(fixtures::IMAGE, 1)),
        Arc::new(fixtures::measured_image("api-1", 2)),
    ];
    for (fill, vcpus, kind, message) in [
        (
            1,
            2,
            "OtherShape",
            "equals this image with 2 vCPUs instead of 1",
        ),
        (
            1,
            1,
            "NotPublished",
            "equals what was expected, but image web-1 does not list it for SimulatedSnp",
        ),
        (
            2,
            1,
            "OtherFirmware",
            "equals this image with the firmware of api-1",
        ),
        (9, 1, "Unknown", "equals nothing that is known; ruled out: "),
    ] {
        let diagnosis = mismatch(observed(fill, vcpus)).explain(&images).unwrap();
        assert_eq!(diagnosis.type_, kind);
        assert!(diagnosis.message.starts_with(message), "{diagnosis:?}");
    }
}

/// A guest that booted in the other way, or from the IGVM file of another image.
#[test]
fn the_way_to_boot_is_named() {
    let published = |name: &str, fill: u8| {
        let mut image = fixtures::measured_image(name, fill);
        let mut inputs = fixtures::measurement_inputs(fill);
        inputs["igvmDigest"] = LaunchDigest::new([fill ^ 0xff; 48]).to_string().into();
        image.status.as_mut().unwrap().measurement_inputs =
            Some(serde_json::from_value(inputs).unwrap());
        Arc::new(image)
    };
    let images = [published(fixtures::IMAGE, 1), published("api-1", 2)];
    let digest = |fill: u8, boot: assay_tee::BootMethod, vcpus| {
        let inputs = serde_json::from_value(fixtures::measurement_inputs(fill)).unwrap();
        let launch = Launch {
            inputs: MeasurementInputs {
                igvm_digest: Some(LaunchDigest::new([fill ^ 0xff; 48])),
                ..inputs
            },
            boot,
            ..mismatch(LaunchDigest::new([0; 48])).expected().unwrap()
        };
        let vcpus = VcpuCount::try_from(vcpus).unwrap();
        Launch { vcpus, ..launch }.measure().unwrap()
    };
    let (direct, igvm) = (
        assay_tee::BootMethod::DirectKernel,
        assay_tee::BootMethod::Igvm,
    );
    for (asked, observed, kind, message) in [
        (
            BootMethod::DirectKernel,
            digest(1, igvm, 2),
            "OtherBoot",
            "equals this image in its IGVM form with 2 vCPUs instead of 1",
        ),
        (
            BootMethod::Igvm,
            digest(1, direct, 1),
            "OtherBoot",
            "equals this image in its direct boot form",
        ),
        (
            BootMethod::Igvm,
            digest(1, igvm, 4),
            "OtherShape",
            "equals this image with 4 vCPUs instead of 1",
        ),
        (
            BootMethod::Igvm,
            digest(2, igvm, 1),
            "OtherImage",
            "equals image api-1",
        ),
    ] {
        let mut mismatch = mismatch(observed);
        mismatch.image = images[0].clone();
        mismatch.machine.boot = asked;
        let diagnosis = mismatch.explain(&images).unwrap();
        assert_eq!(
            (diagnosis.type_.as_str(), &*diagnosis.message),
            (kind, message)
        );
    }
}

/// A status that makes no sense is one that is not there.
#[test]
fn wrong_status_is_not_known() {
    type Change = fn(&mut serde_json::Value);
    let changes: [Change; 6] = [
        |inputs| inputs["firmware"]["digest"] = "nonsense".into(),
        |inputs| inputs["firmware"]["baseGpa"] = (-1).into(),
        |inputs| inputs["kernelHashes"] = hashes("sha256:00"),
        |inputs| inputs["firmware"]["sections"][0]["size"] = 0xffff_f000_u32.into(),
        |inputs| inputs["firmware"]["sections"][0]["gpa"] = 1.into(),
        |inputs| {
            let section = inputs["firmware"]["sections"][0].clone();
            inputs["firmware"]["sections"] = vec![section; 500].into();
        },
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut inputs = fixtures::measurement_inputs(2);
        change(&mut inputs);
        let mut image = fixtures::measured_image("wrong", 2);
        let status = image.status.as_mut().unwrap();
        status.measurement_inputs = Some(serde_json::from_value(inputs).unwrap());
        let image = Arc::new(image);
        // As one of the others, and as the expected one.
        let mismatch = mismatch(observed(1, 2));
        let diagnosis = mismatch.explain(std::slice::from_ref(&image)).unwrap();
        assert_eq!(diagnosis.type_, "OtherShape", "change {index}");
        let mismatch = Mismatch { image, ..mismatch };
        let kind = mismatch.explain(&[]).map(|diagnosis| diagnosis.type_);
        assert!(
            kind.as_deref().is_none_or(|kind| kind == "Unknown"),
            "change {index}: {kind:?}"
        );
        assert_eq!(mismatch.describe().type_, "Unknown", "change {index}");
    }
}

fn hashes(digest: &str) -> serde_json::Value {
    serde_json::json!({ "kernel": digest, "initrd": digest, "cmdline": digest })
}

#[test]
fn a_model_without_a_signature_is_not_searched() {
    let mut mismatch = mismatch(observed(1, 2));
    mismatch.machine.cpu_model = "host".to_owned();
    assert_eq!(mismatch.explain(&[]), None);
}

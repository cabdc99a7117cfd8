use std::env;

use assay_tee::guest_message::{ReportRequest, ReportResponse};
use assay_tee::{
    AttestationReport, BootMethod, GuestFeatures, GuestPolicy, Sha256Digest, TcbVersion, Tee,
    VcpuCount,
};

use assay_image::igvm::{IgvmKernel, IgvmSpec, encode_igvm, measure_self_contained};
use assay_tee::igvm::{Directive, parse_igvm};

use super::*;

const HOST_DATA: Sha256Digest = Sha256Digest::new([9; 32]);

/// The last page of an AmdSev OVMF, which is an image by itself. `None`, said
/// loudly, where the vectors are not at hand.
fn boot_bytes() -> Option<DirectKernelBytes> {
    let vectors = env::var_os("ASSAY_VECTORS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors"),
        PathBuf::from,
    );
    let path = vectors.join("ovmf/amdsev-suffix.bin");
    match fs::read(&path) {
        Ok(firmware) => Some(DirectKernelBytes {
            firmware,
            table: KernelHashes::from_bytes(b"", None, "")
                .encode_table()
                .to_vec(),
            table_gpa: 0x81_0c00,
        }),
        Err(error) => {
            eprintln!("SKIPPED: {}: {error}", path.display());
            None
        }
    }
}

fn shape(vcpus: u32) -> LaunchShape {
    LaunchShape {
        tee: Tee::SimulatedSnp,
        boot: BootMethod::DirectKernel,
        vcpus: VcpuCount::try_from(vcpus).unwrap(),
        cpu_model: "EPYC-v4".to_owned(),
        guest_features: GuestFeatures::default(),
    }
}

fn processor() -> Processor {
    let tcb = TcbVersion {
        fmc: None,
        bootloader: 9,
        tee: 0,
        snp: 23,
        microcode: 72,
    };
    let endorsement = Endorsement::generate("launcher-test", tcb, jiff::Timestamp::now()).unwrap();
    Processor::new(endorsement).unwrap()
}

fn launched(processor: &Processor, boot: &DirectKernelBytes, shape: &LaunchShape) -> Guest {
    let mut launching = processor.launch_start(GuestPolicy::default()).unwrap();
    boot.update(&mut launching, shape).unwrap();
    launching.launch_finish(HOST_DATA).unwrap()
}

/// Digests that sev-snp-measure 0.0.13 computes for this firmware, an empty
/// kernel, EPYC-v4 and guest features 1.
const KNOWN_ANSWERS: [(u32, &str); 2] = [
    (
        1,
        "sha384:ddc5224521617a536ee7ce9dd6224d1b58a8d4fda1c741f3ac99fc4bfa04ba6e\
         9fc98646d4a07a9079397fa3852819b5",
    ),
    (
        4,
        "sha384:5061fffb019493a903613d56d54b94912a1a2f9e4502385f5c194616753720a9\
         2441310ba6c4933de877c36e23046ad5",
    ),
];

#[test]
fn the_launch_digest_is_what_other_tools_compute() {
    let Some(boot) = boot_bytes() else { return };
    let processor = processor();
    for (vcpus, digest) in KNOWN_ANSWERS {
        let shape = shape(vcpus);
        let launched = launched(&processor, &boot, &shape).launch_digest();
        assert_eq!(launched.to_string(), digest, "{vcpus} vCPUs");
        assert_eq!(boot.predict(&shape).unwrap(), launched, "{vcpus} vCPUs");
    }
}

#[test]
fn the_placed_table_is_what_is_measured() {
    let Some(good) = boot_bytes() else { return };
    let other = DirectKernelBytes {
        firmware: good.firmware.clone(),
        table: KernelHashes::from_bytes(b"tampered", None, "")
            .encode_table()
            .to_vec(),
        table_gpa: good.table_gpa,
    };
    let (processor, shape) = (processor(), shape(1));
    let digests = [&good, &other].map(|boot| launched(&processor, boot, &shape).launch_digest());
    assert_ne!(digests[0], digests[1]);
}

#[test]
fn a_table_that_no_launch_digest_covers_is_refused() {
    let Some(mut boot) = boot_bytes() else { return };
    let processor = processor();
    for table_gpa in [0x80_0c00, 0x81_0fff, u32::MAX] {
        boot.table_gpa = table_gpa;
        let mut launching = processor.launch_start(GuestPolicy::default()).unwrap();
        let error = boot.update(&mut launching, &shape(1)).unwrap_err();
        assert!(
            matches!(error, SimulationError::TableOutsideSection { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn the_port_answers_requests_with_bound_reports() {
    let Some(boot) = boot_bytes() else { return };
    let guest = launched(&processor(), &boot, &shape(1));
    let digest = guest.launch_digest();
    let (mut port, service) = tokio::io::duplex(1024);
    let service = tokio::spawn(async move { answer_requests(service, &guest).await });
    for report_data in [[1; 64], [2; 64]] {
        let request = encode_frame(&ReportRequest::new(report_data, 0).encode()).unwrap();
        port.write_all(&request).await.unwrap();
        let mut prefix = [0; 4];
        port.read_exact(&mut prefix).await.unwrap();
        let mut response = vec![0; parse_frame_length(prefix).unwrap()];
        port.read_exact(&mut response).await.unwrap();
        let response = ReportResponse::parse(&response).unwrap();
        let report = AttestationReport::parse(&response.report).unwrap();
        assert_eq!(report.report_data, report_data);
        assert_eq!(report.host_data, *HOST_DATA.as_bytes());
        assert_eq!(report.launch_digest(), digest);
        assert_eq!(response.certificates.0.len(), 3);
    }
    drop(port);
    assert!(service.await.unwrap().is_ok());
}

#[tokio::test]
async fn broken_framing_ends_the_service() {
    let Some(boot) = boot_bytes() else { return };
    let guest = launched(&processor(), &boot, &shape(1));
    let (mut port, service) = tokio::io::duplex(1024);
    port.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
    assert!(matches!(
        answer_requests(service, &guest).await,
        Err(ServeError::Frame(_))
    ));
}

/// The AmdSev build of OVMF. `None`, said loudly, where the oracles are not at
/// hand.
fn amdsev_firmware() -> Option<bytes::Bytes> {
    let Some(paths) = env::var_os("ASSAY_ORACLE_FIRMWARE") else {
        eprintln!("SKIPPED: ASSAY_ORACLE_FIRMWARE is not set (cargo xtask programs)");
        return None;
    };
    let path = env::split_paths(&paths).next().unwrap();
    Some(fs::read(path).unwrap().into())
}

fn igvm_bytes(firmware: &bytes::Bytes, uki: &[u8], vcpus: u32) -> IgvmBytes {
    let uki = bytes::Bytes::copy_from_slice(uki);
    let file = encode_igvm(&IgvmSpec {
        firmware,
        kernel: IgvmKernel::Embedded(&uki),
        vcpus: VcpuCount::try_from(vcpus).unwrap(),
        cpu_signature: CpuModel::by_name("EPYC-v4").unwrap().signature(),
        guest_features: GuestFeatures::default(),
        policy: GuestPolicy::default(),
    });
    IgvmBytes(file.unwrap().to_bytes().to_vec())
}

fn launch_igvm(boot: &IgvmBytes) -> Result<LaunchDigest, IgvmError> {
    let mut launching = processor().launch_start(GuestPolicy::default())?;
    boot.update(&mut launching)?;
    Ok(launching.launch_finish(HOST_DATA)?.launch_digest())
}

/// The processor's digest, the prediction from the same file, and what the
/// operator publishes without any file are one.
#[test]
fn an_igvm_file_has_one_digest() {
    let Some(firmware) = amdsev_firmware() else {
        return;
    };
    let uki = [&[7; 5000][..], &[0; 8192], &[9; 100]].concat();
    let inputs = MeasurementInputs {
        igvm_digest: Some(measure_self_contained(&firmware, &uki.clone().into()).unwrap()),
        ..MeasurementInputs::from_bytes(&firmware, None).unwrap()
    };
    for vcpus in [1, 3] {
        let shape = LaunchShape {
            boot: BootMethod::Igvm,
            ..shape(vcpus)
        };
        let boot = igvm_bytes(&firmware, &uki, vcpus);
        let digest = launch_igvm(&boot).unwrap();
        assert_eq!(boot.predict(&shape).unwrap(), digest, "{vcpus} vCPUs");
        let published = measure_snp(&inputs, &shape).unwrap().digest;
        assert_eq!(published, digest, "{vcpus} vCPUs");
    }
}

#[test]
fn every_byte_of_the_uki_in_an_igvm_file_counts() {
    let Some(firmware) = amdsev_firmware() else {
        return;
    };
    let good = launch_igvm(&igvm_bytes(&firmware, &[7; 5000], 1)).unwrap();
    for at in [0, 4095, 4096, 4999] {
        let mut uki = [7; 5000];
        uki[at] ^= 1;
        assert_ne!(launch_igvm(&igvm_bytes(&firmware, &uki, 1)).unwrap(), good);
    }
}

#[test]
fn a_file_in_another_order_is_not_guessed_about() {
    let Some(firmware) = amdsev_firmware() else {
        return;
    };
    let IgvmBytes(mut file) = igvm_bytes(&firmware, &[7; 5000], 1);
    let parsed = parse_igvm(&file).unwrap();
    let last_page = parsed.directives.len() - 2;
    assert!(matches!(
        parsed.directives[last_page],
        Directive::PageData(_)
    ));
    // The last two headers, page and save area, change places.
    let headers = u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize;
    let end = 24 + headers;
    let (page, context) = (8 + 24, 8 + 24);
    file[end - page - context..end].rotate_left(page);
    file[20..24].fill(0);
    let checksum = crc32fast::hash(&file[..end]);
    file[20..24].copy_from_slice(&checksum.to_le_bytes());
    assert!(matches!(
        launch_igvm(&IgvmBytes(file)),
        Err(IgvmError::Order { .. })
    ));
}

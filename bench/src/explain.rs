//! How long a digest takes that nothing explains, with twenty images known. No
//! peer explains digests; the bound is what counts.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use assay_measure::explain::{Known, Launch, Question};
use assay_measure::{Explanation, FirmwareInputs, MeasurementInputs, VcpuProfile, explain};
use assay_tee::cpu::CpuModel;
use assay_tee::hashes_table::KernelHashes;
use assay_tee::vmsa::Vmm;
use assay_tee::{BootMethod, GuestFeatures, LaunchDigest, VcpuCount};

use crate::peers::Peers;
use crate::table::{duration, heading, median};

/// As often as a median needs.
const ROUNDS: usize = 5;
/// As many as the bound is stated for.
const IMAGES: u8 = 20;

/// Runs the benchmark.
pub(crate) fn run(peers: &Peers) -> Result<()> {
    heading("Explaining: a digest that nothing has, 20 images of their own firmware known");
    let firmware = std::fs::read(&peers.firmware)
        .with_context(|| format!("read {}", peers.firmware.display()))?;
    let firmware = FirmwareInputs::from_bytes(&firmware)?;
    let words: Vec<String> = (0..40).map(|index| format!("option.{index:02}")).collect();
    for (cmdline, what) in [
        ("console=ttyS0 root=/dev/vda ro quiet", "short command line"),
        (&words.join(" "), "400 characters"),
    ] {
        let known: Vec<Known> = (1..=IMAGES)
            .map(|index| Known {
                name: format!("image-{index}"),
                inputs: image(&firmware, index, cmdline),
            })
            .collect();
        for vcpus in [4, 64, 512] {
            let expected = Launch {
                inputs: image(&firmware, 0, cmdline),
                boot: BootMethod::DirectKernel,
                profile: VcpuProfile {
                    vmm: Vmm::Qemu,
                    cpu_signature: CpuModel::by_name("EPYC-Milan")?.signature(),
                    guest_features: GuestFeatures::default(),
                },
                vcpus: VcpuCount::try_from(vcpus)?,
            };
            let mut gaps = 0;
            let mut times = Vec::new();
            for _ in 0..ROUNDS {
                let start = Instant::now();
                let explanation = explain(&Question {
                    observed: LaunchDigest::new([0; 48]),
                    expected: &expected,
                    known: &known,
                    tokens: &[],
                });
                times.push(start.elapsed());
                let Explanation::Unexplained(ruled_out) = explanation else {
                    bail!("zeros are explained");
                };
                gaps = ruled_out.gaps.len();
            }
            let what = format!("{vcpus} vCPUs, {what}");
            let time = duration(median(times));
            println!("{what:<44} ours {time:>12}   {gaps} gaps");
        }
    }
    Ok(())
}

/// An image whose firmware, kernel, initrd and command line are its own.
fn image(firmware: &FirmwareInputs, index: u8, cmdline: &str) -> MeasurementInputs {
    let cmdline = format!("{cmdline} id={index}");
    let hashes = KernelHashes::from_bytes(&[index], Some(&[index, index]), &cmdline);
    MeasurementInputs {
        firmware: FirmwareInputs {
            digest: LaunchDigest::new([index; 48]),
            ..firmware.clone()
        },
        kernel_hashes: Some(hashes),
        cmdline: Some(cmdline),
        igvm_digest: None,
    }
}

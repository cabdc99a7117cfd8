//! What many launch shapes cost: 512 numbers of virtual CPUs of three firmwares.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use assay_measure::matrix::measure_matrix;
use assay_measure::{MeasurementInputs, VcpuProfile};
use assay_tee::cpu::CpuModel;
use assay_tee::vmsa::Vmm;
use assay_tee::{BootMethod, GuestFeatures, VcpuCount};

use crate::peers::Peers;
use crate::process::{in_turn, peak_over};
use crate::table::{duration, figure, heading, median};

/// As often as a median needs.
const ROUNDS: usize = 9;
/// Firmwares that differ in a byte.
const FIRMWARES: u8 = 3;

/// Runs the benchmark.
pub(crate) fn run(peers: &Peers) -> Result<()> {
    heading("Matrix: 512 numbers of virtual CPUs of three firmwares");
    let firmware = std::fs::read(&peers.firmware)
        .with_context(|| format!("read {}", peers.firmware.display()))?;
    let firmwares: Vec<Vec<u8>> = (0..FIRMWARES)
        .map(|number| {
            let mut firmware = firmware.clone();
            firmware[0] ^= number;
            firmware
        })
        .collect();
    let inputs = firmwares
        .iter()
        .map(|firmware| MeasurementInputs::from_bytes(firmware, None))
        .collect::<Result<Vec<_>, _>>()?;
    let counts: BTreeSet<VcpuCount> = (1..=VcpuCount::MAX)
        .map(VcpuCount::try_from)
        .collect::<Result<_, _>>()?;
    let profile = VcpuProfile {
        vmm: Vmm::Qemu,
        cpu_signature: CpuModel::by_name("EPYC-Milan")?.signature(),
        guest_features: GuestFeatures::default(),
    };
    let times = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            black_box(measure_matrix(
                black_box(&inputs),
                BootMethod::DirectKernel,
                &[profile],
                &counts,
            )?);
            Ok(start.elapsed())
        })
        .collect::<Result<Vec<_>>>()?;
    figure(
        "in memory, firmwares hashed before",
        &duration(median(times)),
    );

    let directory = tempfile::tempdir().context("create a directory")?;
    let mut command = Command::new(&peers.assay);
    command.args(["measure", "--vcpu-type", "EPYC-Milan", "--vcpus", "1-512"]);
    for (number, firmware) in firmwares.iter().enumerate() {
        let path = directory.path().join(format!("firmware-{number}"));
        std::fs::write(&path, firmware).with_context(|| format!("write {}", path.display()))?;
        command.arg("--ovmf").arg(path);
    }
    let [cost] = in_turn([&command], 15, || Ok(()))?;
    figure("`assay measure`, the whole process", &duration(cost.wall));
    figure(
        "its peak memory by the largest input",
        &peak_over(&cost, firmware.len()),
    );
    Ok(())
}

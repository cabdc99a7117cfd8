//! `assay measure` against sev-snp-measure, as processes on the same files.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::peers::Peers;
use crate::process::{Cost, drop_caches, in_turn, peak_over};
use crate::table::{compare, duration, figure, heading, mebibytes, skipped};

/// As large as a distribution's kernel and initrd.
const KERNEL_LEN: usize = 16 << 20;
const INITRD_LEN: usize = 48 << 20;

/// Runs the benchmark.
pub(crate) fn run(peers: &Peers) -> Result<()> {
    heading("Launch digest: `assay measure` against sev-snp-measure");
    let Some(oracle) = &peers.sev_snp_measure else {
        skipped("sev-snp-measure", "it is not installed");
        return Ok(());
    };
    let directory = tempfile::tempdir().context("create a directory")?;
    let write = |name: &str, len: usize| -> Result<std::path::PathBuf> {
        let path = directory.path().join(name);
        let content: Vec<u8> = (0..len).map(|at| (at % 251).to_le_bytes()[0]).collect();
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    };
    // Copied, so that all files came into the page cache in the same way.
    let firmware = directory.path().join("firmware");
    let firmware_len = std::fs::copy(&peers.firmware, &firmware)
        .with_context(|| format!("copy {}", peers.firmware.display()))?;
    let firmware_len = usize::try_from(firmware_len).context("the firmware's length")?;
    let kernel = write("kernel", KERNEL_LEN)?;
    let initrd = write("initrd", INITRD_LEN)?;
    for vcpus in [1, 64] {
        let launch = |command: &mut Command, direct_boot: bool| {
            command
                .args(["--mode", "snp", "--vcpu-type", "EPYC-Milan"])
                .args(["--vcpus", &format!("{vcpus}"), "--ovmf"])
                .arg(&firmware);
            if direct_boot {
                command.arg("--kernel").arg(&kernel);
                command.arg("--initrd").arg(&initrd);
                command.args(["--append", "console=ttyS0"]);
            }
        };
        for direct_boot in [false, true] {
            let mut ours = Command::new(&peers.assay);
            ours.arg("measure");
            launch(&mut ours, direct_boot);
            let mut peer = Command::new(oracle);
            launch(&mut peer, direct_boot);
            ensure!(
                digest(&mut ours)? == digest(&mut peer)?,
                "the digests differ: {ours:?} and {peer:?}"
            );
            let what = format!(
                "{vcpus} vCPU{}, {}",
                if vcpus == 1 { "" } else { "s" },
                if direct_boot {
                    "firmware + 64 MiB"
                } else {
                    "firmware"
                }
            );
            let warm = in_turn([&ours, &peer], 15, || Ok(()))?;
            print(&format!("{what}, warm"), warm);
            compare(
                &format!("{what}, peak memory"),
                &mebibytes(warm[0].peak_memory),
                &mebibytes(warm[1].peak_memory),
                ratio(warm.map(|cost| cost.peak_memory)),
            );
            let largest = if direct_boot {
                INITRD_LEN
            } else {
                firmware_len
            };
            figure(
                &format!("{what}, peak by the largest input"),
                &peak_over(&warm[0], largest),
            );
            // What an artifact's manifest holds instead of its files.
            let inputs = directory.path().join("inputs.json");
            let mut recording = Command::new(&peers.assay);
            recording.arg("measure");
            launch(&mut recording, direct_boot);
            digest(recording.arg("--write-inputs").arg(&inputs))?;
            let mut recorded = Command::new(&peers.assay);
            recorded.arg("measure").arg("--inputs").arg(&inputs);
            recorded.args(["--vcpu-type", "EPYC-Milan", "--vcpus", &vcpus.to_string()]);
            ensure!(
                digest(&mut recorded)? == digest(&mut peer)?,
                "the digests differ: {recorded:?} and {peer:?}"
            );
            let costs = in_turn([&recorded, &peer], 15, || Ok(()))?;
            print(&format!("{what}, recorded inputs"), costs);
            match drop_caches() {
                Ok(()) => {
                    let cold = in_turn([&ours, &peer], 5, drop_caches)?;
                    print(&format!("{what}, cold"), cold);
                }
                Err(error) => skipped(&format!("{what}, cold"), &format!("{error:#}")),
            }
        }
    }
    Ok(())
}

fn print(what: &str, costs: [Cost; 2]) {
    compare(
        what,
        &duration(costs[0].wall),
        &duration(costs[1].wall),
        costs[1].wall.as_secs_f64() / costs[0].wall.as_secs_f64(),
    );
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn ratio([ours, peer]: [u64; 2]) -> f64 {
    peer as f64 / ours as f64
}

fn digest(command: &mut Command) -> Result<String> {
    let program = Path::new(command.get_program()).to_owned();
    let output = command
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

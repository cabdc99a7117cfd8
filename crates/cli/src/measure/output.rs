//! What `assay measure` prints: the digest alone, a table of digests, or JSON.

use std::fmt::Write as _;

use anyhow::Result;
use assay_measure::igvm::{IgvmLoader, IgvmSaveAreas, ResetState};
use assay_measure::svsm::{SvsmInputs, SvsmProfile};
use assay_measure::trace::{MeasuredRegion, StreamedRegion};
use assay_measure::vcpus::SaveAreas;
use assay_measure::{MeasurementInputs, VcpuProfile};
use assay_tee::VcpuCount;
use assay_tee::hashes_table::KernelHashes;
use assay_tee::vmsa::Vmsa;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Serialize, Serializer};

use super::options::{Mode, OutputFormat};

/// Everything that was found out.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) mode: Mode,
    pub(super) rows: Vec<Row>,
    /// What stands for each firmware, in the order given.
    pub(super) inputs: Vec<Recorded>,
    /// The hashes table of modes without recorded inputs.
    pub(super) kernel_hashes: Option<KernelHashes>,
    /// Of the last launch; printed where it is the only one.
    pub(super) trace: Trace,
    /// Of the last launch with virtual CPUs; written where it is the only one.
    pub(super) save_areas: Option<MeasuredAreas>,
    /// What a person should know about the digests, one sentence each.
    pub(super) notes: Vec<String>,
}

/// What was measured of either kind of launch, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Trace {
    /// SEV-SNP.
    Pages(Vec<MeasuredRegion>),
    /// SEV and SEV-ES.
    Stream(Vec<StreamedRegion>),
}

impl Default for Trace {
    fn default() -> Self {
        Self::Pages(Vec::new())
    }
}

impl Trace {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Pages(regions) => regions.is_empty(),
            Self::Stream(regions) => regions.is_empty(),
        }
    }

    /// The measured regions, one on each line.
    pub(super) fn to_text(&self) -> String {
        let number = |number: Option<u64>| number.map_or_else(missing, |at| format!("{at:#x}"));
        let vcpu = |vcpu: Option<u32>| vcpu.map_or_else(missing, |vcpu| vcpu.to_string());
        match self {
            Self::Pages(regions) => {
                let lines = regions.iter().map(|region| {
                    [
                        name(&region.kind),
                        name(&region.page_type),
                        vcpu(region.vcpu),
                        number(Some(region.gpa)),
                        number(Some(region.length)),
                        region.digest_after.to_hex(),
                    ]
                });
                let heading = [
                    "REGION",
                    "TYPE",
                    "VCPU",
                    "ADDRESS",
                    "LENGTH",
                    "DIGEST AFTER",
                ];
                table(heading, lines)
            }
            Self::Stream(regions) => {
                let lines = regions.iter().map(|region| {
                    [
                        name(&region.kind),
                        vcpu(region.vcpu),
                        number(region.gpa),
                        number(Some(region.length)),
                        region.contents.to_hex(),
                        region.digest_after.to_hex(),
                    ]
                });
                let heading = [
                    "REGION",
                    "VCPU",
                    "ADDRESS",
                    "LENGTH",
                    "SHA-256",
                    "DIGEST AFTER",
                ];
                table(heading, lines)
            }
        }
    }
}

fn missing() -> String {
    "-".to_owned()
}

/// Save areas of either kind of launch.
#[derive(Debug)]
pub(super) enum MeasuredAreas {
    /// Of a VMM's making.
    Built(Box<SaveAreas>),
    /// Of an IGVM file.
    Igvm(Box<IgvmSaveAreas>),
}

impl MeasuredAreas {
    /// The save area of virtual CPU `index`, counted from zero.
    pub(super) fn get(&self, index: u32) -> Option<&Vmsa> {
        match self {
            Self::Built(areas) => areas.get(index),
            Self::Igvm(areas) => areas.get(index),
        }
    }
}

/// A digest and what it belongs to.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    /// Firmware, IGVM file, or file of recorded inputs.
    pub(super) firmware: String,
    /// CPU by the name that was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) profile: Option<Profile>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vcpus: Option<VcpuCount>,
    /// The digest's bytes; hexadecimal in JSON.
    #[serde(serialize_with = "hexadecimal")]
    pub(super) digest: Vec<u8>,
}

/// A vCPU profile of any kind.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub(super) enum Profile {
    Ovmf(VcpuProfile),
    Svsm(SvsmProfile),
    Igvm(IgvmProfile),
}

/// What a launch from an IGVM file depends on besides the file.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IgvmProfile {
    pub(super) loader: IgvmLoader,
    /// State of virtual CPUs that the file has none for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reset: Option<ResetState>,
}

/// Recorded inputs of either kind, as `--inputs` reads them.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(super) enum Recorded {
    Ovmf(MeasurementInputs),
    Svsm(SvsmInputs),
}

fn hexadecimal<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}

/// `--json` of a single launch.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Single<'a> {
    mode: Mode,
    #[serde(flatten)]
    row: &'a Row,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_hashes: Option<KernelHashes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inputs: Option<&'a Recorded>,
    #[serde(skip_serializing_if = "Trace::is_empty")]
    trace: &'a Trace,
}

/// `--json` of a matrix.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Matrix<'a> {
    mode: Mode,
    rows: &'a [Row],
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_hashes: Option<KernelHashes>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    inputs: &'a [Recorded],
}

impl Report {
    /// The report as JSON.
    pub(super) fn to_json(&self) -> Result<String> {
        let json = match self.rows.as_slice() {
            [row] => serde_json::to_string_pretty(&Single {
                mode: self.mode,
                row,
                kernel_hashes: self.kernel_hashes,
                inputs: self.inputs.first(),
                trace: &self.trace,
            }),
            rows => serde_json::to_string_pretty(&Matrix {
                mode: self.mode,
                rows,
                kernel_hashes: self.kernel_hashes,
                inputs: &self.inputs,
            }),
        };
        Ok(json?)
    }

    /// The digest alone, or a table with one line for each digest.
    pub(super) fn to_text(&self, format: OutputFormat) -> String {
        let digest = |row: &Row| match format {
            OutputFormat::Hex => hex::encode(&row.digest),
            OutputFormat::Base64 => BASE64_STANDARD.encode(&row.digest),
        };
        if let [row] = self.rows.as_slice() {
            return digest(row);
        }
        let lines = self.rows.iter().map(|row| {
            [
                row.firmware.clone(),
                row.cpu.clone().unwrap_or_else(missing),
                row.vcpus
                    .map_or_else(missing, |vcpus| vcpus.get().to_string()),
                digest(row),
            ]
        });
        table(["FIRMWARE", "CPU", "VCPUS", "DIGEST"], lines)
    }
}

/// The name that JSON has for a value.
fn name(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => name,
        other => format!("{other:?}"),
    }
}

/// Lines with aligned columns, the last one as it is, without a final newline.
fn table<const COLUMNS: usize>(
    heading: [&str; COLUMNS],
    lines: impl Iterator<Item = [String; COLUMNS]>,
) -> String {
    let lines: Vec<_> = [heading.map(str::to_owned)]
        .into_iter()
        .chain(lines)
        .collect();
    let mut widths = [0; COLUMNS];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in &lines {
        let mut cells = String::new();
        for (width, cell) in widths.iter().zip(line) {
            let _ = write!(cells, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", cells.trim_end());
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let lines = [["long", "x"], ["é", "last"]].map(|line| line.map(str::to_owned));
        assert_eq!(
            table(["A", "B"], lines.into_iter()),
            "A     B\nlong  x\né     last"
        );
    }
}

//! One SEV-SNP launch by the options of `assay measure`, for other commands.

use anyhow::{Result, bail, ensure};
use assay_measure::VcpuProfile;
use assay_measure::explain::Launch;
use assay_tee::VcpuCount;

use super::options::{Args, Mode};
use super::request::{DirectBoot, Request, SnpSource};
use super::{single, snp_inputs};

/// Options that name one launch of a guest.
#[derive(Debug)]
pub(crate) struct SingleLaunch {
    source: SnpSource,
    kernel: Option<DirectBoot>,
    profile: VcpuProfile,
    vcpus: VcpuCount,
}

impl SingleLaunch {
    /// Checks the options against each other.
    ///
    /// # Errors
    /// When they name no launch or several, or ask for something else.
    pub(crate) fn from_args(args: &Args) -> Result<Self> {
        for (option, given) in [
            ("--write-inputs", args.write_inputs.is_some()),
            ("--dump-vmsa", args.dump_vmsa.is_some()),
            ("--output-format", args.output_format.is_some()),
            ("--verbose", args.verbose),
        ] {
            ensure!(
                !given,
                "{option} is about measuring; use it with `assay measure`"
            );
        }
        ensure!(
            args.mode == Mode::Snp,
            "--mode {} cannot be explained; only the digests of --mode snp can",
            args.mode
        );
        ensure!(
            args.igvm.is_empty() && args.igvm_loader.is_none(),
            "the digests of IGVM files cannot be explained, and none equals the digest of a guest \
             that starts from --ovmf; compare with `assay measure --igvm FILE --vcpus 1-512`, and \
             with other models and files"
        );
        let request = Request::from_args(args)?;
        let shapes = request.shapes();
        let Request::Snp {
            source,
            kernel,
            profiles,
            vcpus,
        } = request
        else {
            bail!("--mode {} cannot be explained", args.mode);
        };
        let (1, Some(profile), Some(vcpus)) = (shapes, profiles.first(), single(&vcpus)) else {
            bail!(
                "one launch is expected, and {shapes} are given; give one --ovmf, one --vcpu-type \
                 and one --vcpus"
            );
        };
        Ok(Self {
            source,
            kernel,
            profile: profile.value,
            vcpus,
        })
    }

    /// Reads the files.
    ///
    /// # Errors
    /// When a file cannot be read, or is no firmware.
    pub(crate) fn read(&self) -> Result<Launch> {
        let (_, inputs) = snp_inputs(&self.source, self.kernel.as_ref())?;
        let [inputs] = <[_; 1]>::try_from(inputs)
            .map_err(|inputs| anyhow::anyhow!("{} firmwares were read", inputs.len()))?;
        Ok(Launch {
            inputs,
            profile: self.profile,
            vcpus: self.vcpus,
        })
    }
}

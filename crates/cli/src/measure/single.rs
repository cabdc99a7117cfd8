//! One SEV-SNP launch by the options of `assay measure`, for other commands.

use anyhow::{Result, bail, ensure};
use assay_measure::VcpuProfile;
use assay_measure::explain::Launch;
use assay_tee::{BootMethod, VcpuCount};

use super::options::{Args, Mode};
use super::request::{DirectBoot, Request, SnpSource};
use super::{files, single, snp_inputs};

/// Options that name one launch of a guest.
#[derive(Debug)]
pub(crate) struct SingleLaunch {
    source: SnpSource,
    boot: BootMethod,
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
            "the digest of an IGVM file cannot be explained by the file; for a file of ours give \
             --ovmf and --kernel, or --inputs, with --boot IGVM, and compare others with `assay \
             measure --igvm FILE --vcpus 1-512`"
        );
        let request = Request::from_args(args)?;
        let shapes = request.shapes();
        let Request::Snp {
            source,
            boot,
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
            boot,
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
        let kernel = self.kernel.as_ref();
        let (paths, inputs) = snp_inputs(&self.source, self.boot, kernel)?;
        let [mut inputs] = <[_; 1]>::try_from(inputs)
            .map_err(|inputs| anyhow::anyhow!("{} firmwares were read", inputs.len()))?;
        // The other way to boot is a neighbour, where there is one.
        if let (SnpSource::Ovmf { digest: None, .. }, None, [path]) =
            (&self.source, inputs.igvm_digest, paths)
        {
            inputs.igvm_digest = files::igvm_digest(path, kernel).ok();
        }
        Ok(Launch {
            inputs,
            boot: self.boot,
            profile: self.profile,
            vcpus: self.vcpus,
        })
    }
}

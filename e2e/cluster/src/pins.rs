//! Every version that the development environment uses, in one place.
//!
//! A version changes here and nowhere else; the cache keys follow.

/// Kubernetes: control plane, kubelet, kube-proxy and kubectl.
pub const KUBERNETES: &str = "1.36.3";
/// etcd, from its own module.
pub const ETCD: &str = "3.6.16";
/// containerd, its shim and `ctr`.
pub const CONTAINERD: &str = "2.4.2";
/// CNI reference plugins.
pub const CNI_PLUGINS: &str = "1.9.1";
/// CoreDNS.
pub const COREDNS: &str = "1.15.0";
/// The distribution registry.
pub const REGISTRY: &str = "3.1.2";
/// Helm.
pub const HELM: &str = "4.2.4";
/// go-sev-guest, whose `check` tool appraises our reports a second time.
pub const GO_SEV_GUEST: &str = "0.15.0";
/// sev-snp-measure from PyPI, which computes our launch digests a second time.
pub const SEV_SNP_MEASURE: &str = "0.0.13";
/// virtfw-igvm-tools, which makes IGVM files of firmware and a kernel a second time.
pub const IGVM_TOOLS: &str = "0.2.6";
/// The Debian suite that kernel, firmware, QEMU and nginx come from. A suite
/// and not package versions: a mirror keeps only the newest of each, so what
/// was resolved is recorded beside what was made from it.
pub const DEBIAN_SUITE: &str = "trixie";
/// The suite that the firmware comes from: the first one with a build of OVMF
/// that verifies the kernel hashes (package ovmf-amdsev).
pub const FIRMWARE_SUITE: &str = "forky";
/// The suite whose source package QEMU is built from.
pub const QEMU_SOURCE_SUITE: &str = "sid";
/// Version of that source package: QEMU 10.1 or later, which load IGVM files. One
/// version and not the newest, because a build takes minutes and its bytes are
/// tested; one that the mirror no longer holds is replaced here.
pub const QEMU_SOURCE: &str = "1:10.2.2+ds-1";

//! Reproducible measured images: OCI in, erofs, verity, initramfs and UKI out.

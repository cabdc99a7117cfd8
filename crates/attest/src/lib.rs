//! Appraisal of SEV-SNP evidence, pure and fail closed.

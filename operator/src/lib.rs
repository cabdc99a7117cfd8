//! The operator: controllers from observation to status.

//! The stepped model.

//! The commands. Each reads its files, does its work, prints one report.

pub mod bench;
pub mod compare;
pub mod compile;
pub mod demo;
pub mod equalize;
pub mod export;
pub mod gemm;
pub mod latency;
pub mod machines;
pub mod methods;
pub mod overflow;
pub mod quantize;
pub mod run;
pub mod sweep;
pub mod train;
pub mod waves;

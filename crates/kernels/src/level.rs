//! Which instructions the processor has.

/// A set of kernels; of one processor's, later ones are faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust, for every processor.
    Portable,
    /// aarch64: 16 columns in two registers.
    Neon,
    /// aarch64 with its dot products of four steps an instruction.
    NeonDot,
    /// x86-64 with AVX2: 16 columns a register.
    Avx2,
    /// x86-64 with AVX-512BW: 32 columns a register.
    Avx512Bw,
    /// x86-64 with AVX-512BW and VNNI: dot products of four steps an instruction.
    Avx512Vnni,
}

impl Level {
    const ALL: [Self; 6] = [
        Self::Portable,
        Self::Neon,
        Self::NeonDot,
        Self::Avx2,
        Self::Avx512Bw,
        Self::Avx512Vnni,
    ];

    /// Every level that this processor has, slowest first.
    pub fn available() -> Vec<Self> {
        let all = Self::ALL.into_iter();
        all.filter(|level| level.is_available()).collect()
    }

    /// Whether this processor has the level.
    #[inline]
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let has_512 = || {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
            };
            match self {
                Self::Portable => true,
                Self::Neon | Self::NeonDot => false,
                Self::Avx2 => is_x86_feature_detected!("avx2"),
                Self::Avx512Bw => Self::Avx2.is_available() && has_512(),
                Self::Avx512Vnni => {
                    Self::Avx512Bw.is_available() && is_x86_feature_detected!("avx512vnni")
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            match self {
                Self::Portable => true,
                // The kernels take registers for arrays in memory.
                Self::Neon => {
                    cfg!(target_endian = "little")
                        && std::arch::is_aarch64_feature_detected!("neon")
                }
                Self::NeonDot => {
                    Self::Neon.is_available() && std::arch::is_aarch64_feature_detected!("dotprod")
                }
                Self::Avx2 | Self::Avx512Bw | Self::Avx512Vnni => false,
            }
        }
        #[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
        {
            self == Self::Portable
        }
    }

    /// Pixels that a kernel takes side by side: whole multiples are fastest.
    pub fn tile_pixels(self) -> usize {
        match self {
            Self::Portable => 1,
            // 16 sums, four registers of weights and four of activations: 24 of 32.
            Self::Neon | Self::NeonDot => 4,
            // Six times two sums, two registers of weights: 14 of 16, and one for activations.
            Self::Avx2 => 6,
            // 28 sums, two registers of weights and one for activations: 31 of 32.
            Self::Avx512Bw | Self::Avx512Vnni => 14,
        }
    }

    /// The fastest level of this processor.
    pub fn best() -> Self {
        Self::available()
            .into_iter()
            .next_back()
            .unwrap_or(Self::Portable)
    }
}

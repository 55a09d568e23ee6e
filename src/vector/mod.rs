//! Vector instruction sets: one token per set, one place that chooses. A token can only be made on
//! a machine that has the instructions, so holding one is the proof that its code may run.
//! Not here: what is computed; [`block`] holds the loops, in plain Rust that the compiler
//! vectorises once per set.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod block;
pub(crate) mod weight;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use self::x86::{Avx2, Avx512, Avx512Vnni, AvxVnni};
use crate::{Error, Result};

/// Bytes of data that a core's nearest cache holds, or 32 KiB where the processor does not say.
pub(crate) fn nearest_cache() -> usize {
    #[cfg(target_arch = "x86_64")]
    let found = x86::nearest_cache();
    #[cfg(not(target_arch = "x86_64"))]
    let found = None;
    found.unwrap_or(32 << 10)
}

/// A vector instruction set that this machine has.
///
/// All of them give the same bytes; this is about speed, and about testing that claim. The sets
/// with VNNI (8-bit dot products) differ from those without in [`crate::kernel`] only.
#[derive(Debug, Clone, Copy)]
pub struct Isa(Token);

#[derive(Debug, Clone, Copy)]
enum Token {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
}

impl Isa {
    /// Names that [`Isa::by_name`] knows, on any machine.
    pub const NAMES: [&str; 5] = ["portable", "avx2", "avxvnni", "avx512", "avx512vnni"];

    /// Plain Rust, on every machine.
    pub const PORTABLE: Self = Self(Token::Portable);

    /// The fastest set of this machine, or the one that the environment variable `TWN_PACK_ISA` names, if it is not empty.
    ///
    /// # Errors
    /// As [`Isa::by_name`], for the name in the variable.
    pub fn detect() -> Result<Self> {
        match std::env::var_os("TWN_PACK_ISA") {
            Some(name) if !name.is_empty() => Self::by_name(&name.to_string_lossy()),
            _ => Ok(Self::all().pop().unwrap_or(Self::PORTABLE)),
        }
    }

    /// Every set of this machine, slowest first.
    pub fn all() -> Vec<Self> {
        Self::NAMES.iter().filter_map(|name| Self::by_name(name).ok()).collect()
    }

    /// The set of that name.
    ///
    /// # Errors
    /// An unknown name, or a set that this machine does not have.
    pub fn by_name(name: &str) -> Result<Self> {
        let token = match name {
            "portable" => Some(Token::Portable),
            #[cfg(target_arch = "x86_64")]
            "avx2" => Avx2::new().map(Token::Avx2),
            #[cfg(target_arch = "x86_64")]
            "avxvnni" => AvxVnni::new().map(Token::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            "avx512" => Avx512::new().map(Token::Avx512),
            #[cfg(target_arch = "x86_64")]
            "avx512vnni" => Avx512Vnni::new().map(Token::Avx512Vnni),
            _ => None,
        };
        token.map(Self).ok_or_else(|| {
            Error::Request(format!(
                "instruction set `{name}` is not there; this machine has {}",
                Self::NAMES
                    .iter()
                    .filter(|n| **n != name && Self::by_name(n).is_ok())
                    .copied()
                    .collect::<Vec<_>>()
                    .join(", ")
            ))
        })
    }

    /// Whether it is more than plain Rust: loops over 16-bit weights take no longer than over `f32` then, those by hand widen
    /// them as they are loaded.
    pub(crate) fn has_vectors(self) -> bool {
        !matches!(self.0, Token::Portable)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Token::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Token::AvxVnni(_) => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Token::Avx512Vnni(_) => "avx512vnni",
        }
    }

    /// Runs `task`, compiled for this instruction set.
    #[inline]
    pub(crate) fn run<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            Token::Portable => task.portable(),
            #[cfg(target_arch = "x86_64")]
            Token::Avx2(token) => token.run(task),
            #[cfg(target_arch = "x86_64")]
            Token::AvxVnni(token) => token.run(task),
            #[cfg(target_arch = "x86_64")]
            Token::Avx512(token) => token.run(task),
            #[cfg(target_arch = "x86_64")]
            Token::Avx512Vnni(token) => token.run(task),
        }
    }
}

/// What a task made of tasks runs them by: each is compiled into it. Fast in a task for the same set only.
pub(crate) trait Inside: Copy {
    fn inside<T: Task>(self, task: T) -> T::Output;
}

/// For plain Rust, which needs no proof.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

impl Inside for Portable {
    #[inline(always)]
    fn inside<T: Task>(self, task: T) -> T::Output {
        task.portable()
    }
}

#[cfg(target_arch = "x86_64")]
impl Inside for Avx2 {
    #[inline(always)]
    fn inside<T: Task>(self, task: T) -> T::Output {
        task.avx2(self)
    }
}

#[cfg(target_arch = "x86_64")]
impl Inside for Avx512 {
    #[inline(always)]
    fn inside<T: Task>(self, task: T) -> T::Output {
        task.avx512(self)
    }
}

/// A loop over a block of weights. `portable` must be `#[inline(always)]`: it is inlined into one
/// function per instruction set and vectorised there.
pub(crate) trait Task: Sized {
    type Output;

    fn portable(self) -> Self::Output;

    /// A form by hand for AVX2, where the compiler's is measurably slower.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx2(self, _proof: Avx2) -> Self::Output {
        self.portable()
    }

    /// A form by hand for AVX-512, where the compiler's is measurably slower.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512(self, proof: Avx512) -> Self::Output {
        self.avx2(proof.avx2())
    }

    /// A form by hand with 8-bit dot products of 256 bits.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avxvnni(self, proof: AvxVnni) -> Self::Output {
        self.avx2(proof.avx2())
    }

    /// A form by hand with 8-bit dot products of 512 bits.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn avx512vnni(self, proof: Avx512Vnni) -> Self::Output {
        self.avx512(proof.avx512())
    }
}

//! What is asked of the C library: memory back after a model, and that a quotient which has no value does not end the
//! process.
//!
//! ONNX Runtime divides whole numbers as C++ does. Its Div and Mod look for a zero before they divide (STFT does not, for
//! which see `outline`), but not for the one other case that processors of x86 refuse: the least number by -1, whose
//! quotient is one more than the greatest. One request could end the server with it. Here it is what it is on other
//! processors and in numpy: the least number again, and no rest.

use std::sync::Once;

/// Has large pieces of memory, the weights of models among them, come from the system and go back to it one by one. Left
/// to itself the C library learns to keep ever larger pieces, and those at the end of a thread's own heap it does not
/// give back even when it is asked to.
#[expect(unsafe_code, reason = "a call of the C library")]
pub(super) fn keep_little() {
    /// Larger pieces are the system's: larger than the tensors of most requests, which are better kept.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    const LARGE: libc::c_int = 8 << 20;
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
    }
}

/// Has this thread, and those that it starts, go after others: half as far as the threads that make calls do. A thread
/// that is held up with part of a node has a call spin for it, and two calls together leave a core of two to neither.
#[expect(unsafe_code, reason = "a call of the C library")]
pub(super) fn stand_back() {
    const NICE: libc::c_int = 5;
    kernels::turns::long();
    #[cfg(target_os = "linux")]
    // SAFETY: it takes no pointer. On Linux it is a thread that has a priority, and not its process.
    unsafe {
        libc::nice(NICE);
    }
}

/// Gives memory that is free back to the system. The C library keeps it for what may come, even where it was the weights
/// of a model that is gone.
#[expect(unsafe_code, reason = "a call of the C library")]
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer, and locks what it looks through.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Sees to it that quotients without a value do not end the process.
pub(super) fn guard_division() {
    static ONCE: Once = Once::new();
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    ONCE.call_once(division::install);
    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    let _ = &ONCE;
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod division {
    use libc::{REG_RAX, REG_RDX, REG_RIP, c_int, c_void, siginfo_t, ucontext_t};

    /// Registers by the numbers that instructions have for them.
    const REGISTERS: [c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];

    /// A division of signed numbers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Division {
        /// Bytes of the instruction.
        pub(super) length: usize,
        /// Of 64 bits, or of 32.
        pub(super) wide: bool,
        pub(super) divisor: Place,
    }

    /// Where a number is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Place {
        Register(usize),
        /// `base + index * scale + offset`; `None` for a base is the next instruction, or nothing.
        Memory {
            base: Base,
            index: Option<(usize, u8)>,
            offset: i64,
        },
    }

    /// What an address is counted from.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Base {
        Nothing,
        Register(usize),
        NextInstruction,
    }

    /// Reads an instruction: `idiv`, with or without a REX prefix (Intel's manual, volume 2, 2.1 and 2.2). `None` is
    /// another, or one with prefixes that compilers do not write here.
    pub(super) fn decode(code: &[u8]) -> Option<Division> {
        let (rex, start) = match code.first()? {
            rex @ 0x40..=0x4f => (*rex, 1),
            _ => (0, 0),
        };
        let [0xf7, mode, ..] = *code.get(start..)? else { return None };
        if mode >> 3 & 7 != 7 {
            return None;
        }
        let wide = rex & 8 != 0;
        let extended = |number: u8, bit: u8| usize::from(number | if rex & bit != 0 { 8 } else { 0 });
        let (kind, low) = (mode >> 6, mode & 7);
        let mut at = start + 2;
        if kind == 3 {
            return Some(Division { length: at, wide, divisor: Place::Register(extended(low, 1)) });
        }
        let (mut base, mut index) = (Base::Register(extended(low, 1)), None);
        let mut far = kind == 2;
        if low == 4 {
            let sib = *code.get(at)?;
            at += 1;
            let number = extended(sib >> 3 & 7, 2);
            index = (number != 4).then_some((number, 1 << (sib >> 6)));
            base = Base::Register(extended(sib & 7, 1));
            if sib & 7 == 5 && kind == 0 {
                (base, far) = (Base::Nothing, true);
            }
        } else if low == 5 && kind == 0 {
            (base, far) = (Base::NextInstruction, true);
        }
        let offset = if far {
            let bytes = code.get(at..at + 4)?.try_into().ok()?;
            at += 4;
            i32::from_le_bytes(bytes).into()
        } else if kind == 1 {
            at += 1;
            i64::from(*code.get(at - 1)? as i8)
        } else {
            0
        };
        Some(Division { length: at, wide, divisor: Place::Memory { base, index, offset } })
    }

    /// Bytes of the longest instruction.
    const LONGEST: usize = 15;

    #[expect(unsafe_code, reason = "a handler of signals is the C library's to install")]
    pub(super) fn install() {
        // SAFETY: the action is all zeros but for what is set, which is how C has it; the handler has the signature that
        // SA_SIGINFO asks for, calls nothing that is unsafe in a handler, and lives as long as the process.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGFPE, &action, std::ptr::null_mut());
        }
    }

    /// Puts the quotient in its place and goes on behind the division. Any other fault ends the process as it would
    /// have without this.
    #[expect(unsafe_code, reason = "registers of the thread that faulted are behind a pointer of the kernel's")]
    extern "C" fn on_fault(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: with SA_SIGINFO the kernel passes the interrupted thread's context. Its instruction was just read by
        // the processor, so the bytes from there are mapped as far as it is long; the page's end is not crossed. Memory
        // that the instruction names was just read by it, too.
        unsafe {
            let registers = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
            let here = registers[REG_RIP as usize] as usize;
            let readable = LONGEST.min(4096 - here % 4096);
            let code = std::slice::from_raw_parts(here as *const u8, readable);
            if let Some(division) = decode(code) {
                let value = |number: usize| registers[REGISTERS[number] as usize];
                let divisor = match division.divisor {
                    Place::Register(number) => value(number),
                    Place::Memory { base, index, offset } => {
                        let base = match base {
                            Base::Nothing => 0,
                            Base::Register(number) => value(number),
                            Base::NextInstruction => (here + division.length) as i64,
                        };
                        let index = index.map_or(0, |(number, scale)| value(number).wrapping_mul(scale.into()));
                        let address = base.wrapping_add(index).wrapping_add(offset) as usize;
                        if division.wide {
                            (address as *const i64).read_unaligned()
                        } else {
                            (address as *const i32).read_unaligned().into()
                        }
                    }
                };
                if if division.wide { divisor == -1 } else { divisor as i32 == -1 } {
                    registers[REG_RAX as usize] = if division.wide { i64::MIN } else { i64::from(1u32 << 31) };
                    registers[REG_RDX as usize] = 0;
                    registers[REG_RIP as usize] = (here + division.length) as i64;
                    return;
                }
            }
            libc::signal(libc::SIGFPE, libc::SIG_DFL);
        }
    }
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use super::division::{Base, Division, Place, decode};
    use super::guard_division;

    #[test]
    fn divisions_are_read_as_assemblers_write_them() {
        let memory = |base, index, offset| Place::Memory { base, index, offset };
        for (code, length, wide, divisor) in [
            (&[0xf7, 0xf9][..], 2, false, Place::Register(1)),
            (&[0x48, 0xf7, 0xfe], 3, true, Place::Register(6)),
            (&[0x41, 0xf7, 0xf8], 3, false, Place::Register(8)),
            (&[0xf7, 0x3e], 2, false, memory(Base::Register(6), None, 0)),
            (&[0x48, 0xf7, 0x7e, 0xf8], 4, true, memory(Base::Register(6), None, -8)),
            (&[0xf7, 0x3c, 0x8e], 3, false, memory(Base::Register(6), Some((1, 4)), 0)),
            (&[0x4a, 0xf7, 0x7c, 0xe6, 0x08], 5, true, memory(Base::Register(6), Some((12, 8)), 8)),
            (&[0xf7, 0xbd, 0, 1, 0, 0], 6, false, memory(Base::Register(5), None, 256)),
            (&[0xf7, 0x3d, 1, 0, 0, 0], 6, false, memory(Base::NextInstruction, None, 1)),
            (&[0xf7, 0x3c, 0x25, 1, 0, 0, 0], 7, false, memory(Base::Nothing, None, 1)),
            (&[0xf7, 0x3c, 0x24], 3, false, memory(Base::Register(4), None, 0)),
        ] {
            assert_eq!(decode(code), Some(Division { length, wide, divisor }), "{code:02x?}");
        }
        // A division of numbers without a sign, a multiplication, and what breaks off.
        for code in [&[0xf7, 0xf1][..], &[0xf7, 0xe9], &[0xf7], &[0xf7, 0x3d, 1], &[0x66, 0xf7, 0xf9], &[]] {
            assert_eq!(decode(code), None, "{code:02x?}");
        }
    }

    #[test]
    #[expect(unsafe_code, reason = "Rust checks quotients before it divides")]
    fn the_least_number_by_minus_one_is_itself() {
        guard_division();
        let (mut quotient, mut rest) = (i32::MIN, -1i32);
        // SAFETY: it changes the registers that it says it changes.
        unsafe {
            std::arch::asm!("idiv {0:e}", in(reg) -1i32, inout("eax") quotient, inout("edx") rest);
        }
        assert_eq!((quotient, rest), (i32::MIN, 0));
        let (mut quotient, mut rest, divisor) = (i64::MIN, -1i64, -1i64);
        // SAFETY: as above; the divisor is where the reference leads.
        unsafe {
            std::arch::asm!("idiv qword ptr [{0}]", in(reg) &divisor, inout("rax") quotient, inout("rdx") rest);
        }
        assert_eq!((quotient, rest), (i64::MIN, 0));
    }
}

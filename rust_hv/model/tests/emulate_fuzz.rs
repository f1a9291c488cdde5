// SPDX-License-Identifier: GPL-2.0

//! Garbage instructions on garbage state: no panic, no endless loop, no half-done transaction.

use proptest::prelude::*;
use rusthv_model::arch::addr::{Gpa, Gva};
use rusthv_model::arch::exception::PageFaultError;
use rusthv_model::arch::regs::Rflags;
use rusthv_model::arch::segment::{AccessRights, Segment};
use rusthv_model::emulate::*;

/// A machine where a hash of the page number decides what is there.
#[derive(Clone, Debug)]
pub struct Chaos {
    gprs: [u64; 16],
    rip: u64,
    rflags: Rflags,
    segments: [(u64, u32, u32); 6],
    protected: bool,
    alignment_checked: bool,
    wide: bool,
    seed: u64,
    /// Everything that was asked of memory.
    calls: u32,
    stores: u32,
}

impl Chaos {
    fn hash(&self, value: u64) -> u64 {
        let mut hash = (value ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
        hash.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
    }

    fn state(&self) -> ([u64; 16], u64, Rflags, u32) {
        (self.gprs, self.rip, self.rflags, self.stores)
    }

    fn flaky(&mut self, gpa: Gpa) -> Result<(), ()> {
        self.calls += 1;
        match self.hash(gpa.raw() ^ 0x55) % 32 {
            0 => Err(()),
            _ => Ok(()),
        }
    }
}

impl Cpu for Chaos {
    fn gpr(&self, register: Gpr) -> u64 {
        self.gprs[usize::from(register.number())]
    }
    fn set_gpr(&mut self, register: Gpr, value: u64) {
        self.gprs[usize::from(register.number())] = value;
    }
    fn rip(&self) -> u64 {
        self.rip
    }
    fn set_rip(&mut self, rip: u64) {
        self.rip = rip;
    }
    fn rflags(&self) -> Rflags {
        self.rflags
    }
    fn set_rflags(&mut self, rflags: Rflags) {
        self.rflags = rflags;
    }
    fn segment(&self, name: SegmentName) -> Segment {
        let (base, limit, rights) = self.segments[name as usize];
        Segment {
            base,
            limit,
            selector: 8,
            rights: AccessRights::from_raw(rights),
        }
    }
    fn is_protected(&self) -> bool {
        self.protected
    }
    fn linear_bits(&self) -> u32 {
        if self.wide {
            57
        } else {
            48
        }
    }
    fn is_alignment_checked(&self) -> bool {
        self.alignment_checked
    }
}

impl Memory for Chaos {
    type Error = ();

    fn translate(&mut self, gva: Gva, access: Access) -> Result<Place, Stop<()>> {
        self.calls += 1;
        let backing = match self.hash(gva.page_base().raw()) % 16 {
            0 => {
                let error =
                    PageFaultError::NONE.with(PageFaultError::WRITE, access == Access::Write);
                return Err(Stop::Fault(Exception::page_fault(gva, error)));
            }
            1 => return Err(Stop::Retry),
            2..=5 => Backing::Mmio,
            6 | 7 => Backing::Rom,
            _ => Backing::Ram,
        };
        Ok(Place {
            gpa: Gpa::new(gva.raw()),
            backing,
        })
    }
    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), ()> {
        assert!((1..=8).contains(&bytes.len()));
        self.flaky(gpa)?;
        let noise = self.hash(gpa.raw()).to_le_bytes();
        bytes.copy_from_slice(&noise[..bytes.len()]);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), ()> {
        assert!((1..=8).contains(&bytes.len()));
        assert!(gpa.page_offset() + bytes.len() as u64 <= 4096);
        self.flaky(gpa)?;
        self.stores += 1;
        Ok(())
    }
    fn compare_exchange(&mut self, gpa: Gpa, width: Width, _: u64, _: u64) -> Result<bool, ()> {
        assert_eq!(gpa.raw() & (u64::from(width.bytes()) - 1), 0);
        self.flaky(gpa)?;
        let won = self.hash(u64::from(self.calls)) % 4 != 0;
        self.stores += u32::from(won);
        Ok(won)
    }
}

pub fn chaos() -> impl Strategy<Value = Chaos> {
    let value = prop_oneof![
        any::<u64>(),
        0u64..0x1_0010,
        Just(!0),
        any::<u32>().prop_map(u64::from)
    ];
    let limit = prop_oneof![any::<u32>(), Just(0xffff), Just(u32::MAX), Just(0)];
    let attributes = prop_oneof![any::<u32>(), Just(0xc093), Just(0x93), Just(0x4097)];
    (
        prop::array::uniform16(value.clone()),
        value.clone(),
        any::<u64>(),
        [0; 6].map(|_| (value.clone(), limit.clone(), attributes.clone())),
        any::<(bool, bool, bool, u64)>(),
    )
        .prop_map(
            |(gprs, rip, rflags, segments, (protected, ac, wide, seed))| Chaos {
                gprs,
                rip,
                rflags: Rflags::from_raw(rflags),
                segments,
                protected,
                alignment_checked: ac && seed & 7 == 0,
                wide,
                seed,
                calls: 0,
                stores: 0,
            },
        )
}

/// Bytes that mostly begin like an instruction of the set.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop::sample::select(vec![
        0x26u8, 0x2e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x48, 0x4f,
    ]);
    let opcode = prop_oneof![
        4 => prop::sample::select(vec![
            0x00u8, 0x13, 0x29, 0x3b, 0x80, 0x83, 0x87, 0x89, 0x8b, 0x8f, 0xa1, 0xa2, 0xa4, 0xa5,
            0xa6, 0xaa, 0xab, 0xac, 0xaf, 0xc7, 0xf6, 0xff,
        ])
        .prop_map(|op| vec![op]),
        2 => prop::sample::select(vec![0xabu8, 0xba, 0xbb, 0xb1, 0xb6, 0xbf, 0xc1, 0xc3, 0xc7])
            .prop_map(|op| vec![0x0f, op]),
        1 => any::<u8>().prop_map(|op| vec![op]),
    ];
    let tail = prop::collection::vec(any::<u8>(), 0..14);
    (prop::collection::vec(prefix, 0..4), opcode, tail)
        .prop_map(|(prefixes, opcode, tail)| [prefixes, opcode, tail].concat())
}

/// What one iteration can ask of memory: two operands of two pages, each translated, loaded and
/// stored.
const CALLS_PER_ITERATION: u32 = 12;

pub fn modes() -> impl Strategy<Value = Mode> {
    prop::sample::select(vec![Mode::Bits16, Mode::Bits32, Mode::Bits64])
}

/// Iterations of a string instruction in one go.
pub fn limits() -> impl Strategy<Value = u32> {
    prop_oneof![Just(1u32), 0u32..50]
}

/// Runs an instruction until it is done, with a device that gives the same answer to each load.
pub fn run(
    machine: &mut Chaos,
    bytes: &[u8],
    mode: Mode,
    limit: u32,
    answers: u64,
) -> Result<(), TestCaseError> {
    let Ok(insn) = decode(bytes, mode) else {
        return Ok(());
    };
    prop_assert!((1..=15).contains(&insn.len));
    let mut log = MmioLog::new();
    // A device instruction may leave four times for loads; 64 rounds see iterations too.
    let mut loads = 0;
    for _ in 0..64 {
        let before = machine.state();
        machine.calls = 0;
        let outcome = execute(machine, &insn, &mut log, limit);
        prop_assert!(machine.calls <= limit.max(1) * CALLS_PER_ITERATION);
        let single = limit <= 1;
        match outcome {
            Outcome::MmioRead(read) => {
                prop_assert!((1..=8).contains(&read.len));
                prop_assert!(read.gpa.page_offset() + u64::from(read.len) <= 4096);
                if single {
                    prop_assert_eq!(before, machine.state());
                }
                loads = if before == machine.state() {
                    loads + 1
                } else {
                    1
                };
                prop_assert!(loads <= 4);
                prop_assert_eq!(log.record(read, answers.to_le_bytes()), Ok(()));
            }
            Outcome::MmioWrite {
                mut writes,
                finished,
                ..
            } => {
                prop_assert!(log.is_empty());
                prop_assert!(!writes.is_empty());
                let mut count = 0;
                while let Some(write) = writes.pop() {
                    count += 1;
                    prop_assert!((1..=8).contains(&write.bytes().len()));
                }
                prop_assert!(count <= 2);
                if finished {
                    break;
                }
                loads = 0;
            }
            Outcome::Again { .. } => {
                if log.is_empty() {
                    loads = 0;
                }
            }
            Outcome::Done { .. } => {
                prop_assert!(log.is_empty());
                let next = before.1.wrapping_add(u64::from(insn.len));
                let next = if mode == Mode::Bits64 {
                    next
                } else {
                    next & 0xffff_ffff
                };
                prop_assert_eq!(machine.rip, next);
                break;
            }
            Outcome::Fault(_) => {
                prop_assert!(log.is_empty());
                if single {
                    prop_assert_eq!(before, machine.state());
                }
                break;
            }
            Outcome::Failed(()) => {
                // Answers are kept, where there are any.
                prop_assert!(log.is_empty() || loads != 0);
                if single {
                    // The first page of a store may be done, but no register.
                    let after = machine.state();
                    prop_assert_eq!((before.0, before.1, before.2), (after.0, after.1, after.2));
                }
                break;
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 8_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn garbage_does_no_harm(
        mut machine in chaos(),
        bytes in bytes(),
        mode in modes(),
        limit in limits(),
        answers in any::<u64>(),
    ) {
        run(&mut machine, &bytes, mode, limit, answers)?;
    }

    #[test]
    fn garbage_decodes_to_something(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
        for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
            match decode(&bytes, mode) {
                Ok(insn) => prop_assert!(usize::from(insn.len) <= bytes.len()),
                Err(DecodeError::NeedMoreBytes) => prop_assert!(bytes.len() < MAX_LEN),
                Err(DecodeError::TooLong) => prop_assert!(bytes.len() >= MAX_LEN),
                Err(_) => {}
            }
        }
    }
}

// SPDX-License-Identifier: GPL-2.0
//! rusthv-map: who owns a frame, where a guest address is, and what a VM's memory looks like.

mod demo;
mod draw;
mod files;
mod uapi;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

type Result<T> = std::result::Result<T, String>;

#[derive(Parser)]
#[command(
    name = "rusthv-map",
    version,
    about = "Shows which VM owns a frame, where a guest address is, and a VM's memory as a map",
    after_long_help = "\
VMs of all processes are shown as debugfs has them: mount it, and be root. A VM is named PID-ID,
as `rusthv-map list` shows it. Addresses are decimal, or hexadecimal after 0x.

Exit status:
  0  the answer was found
  1  there is none: nobody owns the frame, nothing is mapped there
  2  wrong usage
  3  the device or debugfs cannot be used"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: Options,
}

#[derive(Args)]
struct Options {
    /// The hypervisor's device node
    #[arg(
        long,
        global = true,
        default_value = "/dev/rusthv",
        value_name = "PATH"
    )]
    device: PathBuf,
    /// The module's directory in debugfs
    #[arg(
        long,
        global = true,
        default_value = "/sys/kernel/debug/rust_hv",
        value_name = "PATH"
    )]
    debugfs: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the VMs and how much they have mapped
    List,
    /// Says who has the frame mapped that holds a host-physical address
    Owner {
        /// Host-physical address
        #[arg(value_parser = number)]
        hpa: u64,
    },
    /// Says where a guest-physical address of a VM is in the host
    Where {
        /// The VM: PID-ID
        vm: String,
        /// Guest-physical address
        #[arg(value_parser = number)]
        gpa: u64,
    },
    /// Draws the memory of a VM
    Draw {
        /// The VM: PID-ID
        vm: String,
        #[command(flatten)]
        style: draw::Style,
    },
    /// Runs a small guest and asks all of the above about it, and follows an address level by level
    Demo {
        /// Linear address that the guest writes to, and that is followed
        #[arg(long, value_parser = number, default_value = "0x1234")]
        gva: u64,
        /// How the guest's memory is virtualized
        #[arg(long, value_enum, default_value_t = demo::Paging::Nested)]
        paging: demo::Paging,
        #[command(flatten)]
        style: draw::Style,
    },
}

/// A number as people write addresses.
fn number(text: &str) -> Result<u64> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| error.to_string())
}

/// Prints who has a frame; true when somebody has.
fn owner(options: &Options, hpa: u64) -> Result<bool> {
    let device = uapi::open(&options.device)?;
    let mut first = 0;
    loop {
        let frame = uapi::frame(&device, hpa, first)?;
        if first == 0 {
            let kind = uapi::kind(frame.kind);
            match (frame.total, frame.kind) {
                (0, uapi::ZERO) => println!("{hpa:#x}: the host's page of zeroes"),
                (0, _) => println!("{hpa:#x}: no guest has it"),
                (total, _) => println!("{hpa:#x}: {total} owner(s), {kind}, node {}", frame.node),
            }
        }
        for owner in frame.owners.iter().take(frame.count as usize) {
            println!(
                "  VM {}-{} has it at {:#x}: {} page, {}, {}",
                owner.pid,
                owner.vm,
                owner.gpa,
                uapi::size(owner.page_shift),
                uapi::rights(owner.flags),
                uapi::mode(owner.mode),
            );
        }
        first += uapi::OWNERS as u32;
        if u64::from(first) >= frame.total {
            return Ok(frame.total > 0);
        }
    }
}

/// Prints where a guest address is; true when it is mapped.
fn locate(options: &Options, vm: &str, gpa: u64) -> Result<bool> {
    let vm = files::Vm::open(&options.debugfs, vm)?;
    let Some(slot) = vm.slots()?.into_iter().find(|slot| slot.contains(gpa)) else {
        println!("{gpa:#x}: no memory slot: a device");
        return Ok(false);
    };
    let hva = slot.hva + (gpa - slot.gpa);
    let found = vm
        .stretches()?
        .into_iter()
        .find(|stretch| stretch.contains(gpa));
    match &found {
        Some(stretch) => println!(
            "{gpa:#x}: host-physical {:#x} ({} page, {}, {}, node {}), {hva:#x} in the VMM, slot {}",
            stretch.hpa + (gpa - stretch.gpa),
            stretch.size_name(),
            stretch.flags,
            stretch.kind,
            stretch.node,
            slot.id,
        ),
        None => println!("{gpa:#x}: not mapped now; {hva:#x} in the VMM, slot {}", slot.id),
    }
    Ok(found.is_some())
}

fn list(options: &Options) -> Result<bool> {
    let names = files::list(&options.debugfs)?;
    println!(
        "{:<16} {:>10} {:>10} {:>8} {:>8} {:>8}",
        "VM", "in slots", "mapped", "4K", "2M", "1G"
    );
    for name in &names {
        let vm = files::Vm::open(&options.debugfs, name)?;
        let bytes: u64 = vm.slots()?.iter().map(|slot| slot.size).sum();
        let stretches = vm.stretches()?;
        let of = |size: u64| -> u64 {
            stretches
                .iter()
                .filter(|s| s.page == size)
                .map(|s| s.count)
                .sum()
        };
        let (small, large, huge) = (of(4 << 10), of(2 << 20), of(1 << 30));
        let mapped: u64 = stretches.iter().map(files::Stretch::bytes).sum();
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        println!(
            "{name:<16} {:>10} {:>10} {small:>8} {large:>8} {huge:>8}",
            mib(bytes),
            mib(mapped)
        );
    }
    Ok(!names.is_empty())
}

fn run(cli: &Cli) -> Result<bool> {
    let options = &cli.options;
    match &cli.command {
        Command::List => list(options),
        Command::Owner { hpa } => owner(options, *hpa),
        Command::Where { vm, gpa } => locate(options, vm, *gpa),
        Command::Draw { vm, style } => {
            let vm = files::Vm::open(&options.debugfs, vm)?;
            draw::draw(&vm.slots()?, &vm.stretches()?, style);
            Ok(true)
        }
        Command::Demo { gva, paging, style } => demo::run(options, *gva, *paging, style),
    }
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("rusthv-map: {message}");
            ExitCode::from(3)
        }
    }
}

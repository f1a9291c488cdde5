// SPDX-License-Identifier: GPL-2.0

//! x86 facts: addresses, registers, bits, vectors, exit and field numbers.

pub mod addr;

// SPDX-License-Identifier: GPL-2.0
//! The compiler wants a crate of this name beside core. What it would hold for these targets, four
//! functions for blocks of memory, is in memory.rs, in assembly.
#![no_std]
#![allow(internal_features)]
#![feature(compiler_builtins)]
#![compiler_builtins]

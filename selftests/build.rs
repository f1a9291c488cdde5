// SPDX-License-Identifier: GPL-2.0

//! Lists the files of `src/tests` as the registry of tests, so that no test is left out.
//!
//! The name of a test is its file's name, and the first line of its documentation says what it
//! shows. A file without that line, or without a `mod` line in `src/tests/mod.rs`, does not build.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src/tests");
    let directory =
        Path::new(&env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?).join("src").join("tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory)? {
        let path = entry?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
            if let Some(stem) = name.strip_suffix(".rs").filter(|stem| *stem != "mod") {
                names.push(stem.to_owned());
            }
        }
    }
    names.sort();
    let mut registry = String::from("pub const ALL: &[Entry] = &[\n");
    for name in &names {
        let text = fs::read_to_string(directory.join(format!("{name}.rs")))?;
        let Some(shows) = text.lines().find_map(|line| line.strip_prefix("//! ")) else {
            return Err(io::Error::other(format!("{name}.rs does not say what it shows")));
        };
        registry += &format!("    Entry {{ name: {name:?}, shows: {shows:?}, test: &{name}::TEST }},\n");
    }
    registry += "];\n";
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    fs::write(Path::new(&out).join("registry.rs"), registry)
}

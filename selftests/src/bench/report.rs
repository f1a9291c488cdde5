// SPDX-License-Identifier: GPL-2.0

//! The figures as a table and as JSON.

use super::options::Options;
use super::{Line, Measured};
use crate::host;
use std::fmt::Write;

/// A row may cost this much of what the first device's costs.
const LIMIT: f64 = 1.02;

/// The rows in which the last device is slower than the first.
pub fn slower(lines: &[Line]) -> Vec<&Line> {
    let slower = |line: &&Line| line.row.compared && line.ratio().is_some_and(|ratio| ratio > LIMIT);
    lines.iter().filter(slower).collect()
}

/// The rows that the last device has no figure for, though it should.
pub fn unmeasured(lines: &[Line]) -> Vec<&Line> {
    lines.iter().filter(|line| line.row.compared && line.ratio().is_none()).collect()
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value < 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}

pub fn table(options: &Options, lines: &[Line]) -> String {
    let mut text = format!(
        "TSC {} for one operation, best of {} rounds (median in brackets); {}\n",
        options.unit,
        options.rounds,
        mitigations_line()
    );
    let _ = write!(text, "{:48}", "operation");
    for device in &options.devices {
        let _ = write!(text, " {device:>22}");
    }
    let _ = write!(text, " {:>7}", "ratio");
    for device in &options.devices {
        let name = device.rsplit('/').next().unwrap_or(device);
        let _ = write!(text, " {:>13}", format!("exits {name}"));
    }
    text.push('\n');
    for line in lines {
        let _ = write!(text, "{:48}", line.row.name);
        for result in &line.devices {
            let figures = match &result.missing {
                Some(_) => "-".into(),
                None => format!("{} ({})", number(result.best()), number(result.median())),
            };
            let _ = write!(text, " {figures:>22}");
        }
        let ratio = line.ratio().filter(|_| line.row.compared).map(|ratio| format!("{ratio:.3}"));
        let _ = write!(text, " {:>7}", ratio.unwrap_or("-".into()));
        for result in &line.devices {
            let exits = result.exits().map(|exits| format!("{exits:.3}"));
            let _ = write!(text, " {:>13}", exits.unwrap_or("-".into()));
        }
        text.push('\n');
    }
    for (line, reason) in lines.iter().filter_map(|line| Some((line, missing(line)?))) {
        let _ = writeln!(text, "# {}: {reason}", line.row.name);
    }
    text
}

fn missing(line: &Line) -> Option<&str> {
    line.devices.iter().find_map(|result| result.missing.as_deref())
}

fn mitigations_line() -> String {
    let all = host::vulnerabilities();
    let on: Vec<&str> = all
        .iter()
        .filter(|(_, state)| state.starts_with("Mitigation"))
        .map(|(name, _)| name.as_str())
        .collect();
    let open: Vec<&str> = all
        .iter()
        .filter(|(_, state)| state.starts_with("Vulnerable"))
        .map(|(name, _)| name.as_str())
        .collect();
    let list = |names: &[&str]| if names.is_empty() { "none".into() } else { names.join(", ") };
    if all.is_empty() {
        return "whether mitigations are on is not known".into();
    }
    format!("mitigations on: {}; vulnerable: {}", list(&on), list(&open))
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

fn value(number: Option<f64>) -> String {
    number.map_or("null".into(), |number| format!("{number:.4}"))
}

fn result(device: &str, result: &Measured) -> String {
    format!(
        "{{\"device\": {}, \"best\": {}, \"median\": {}, \"exits\": {}, \"missing\": {}}}",
        quoted(device),
        value(result.best()),
        value(result.median()),
        value(result.exits()),
        result.missing.as_deref().map_or("null".into(), quoted)
    )
}

pub fn json(options: &Options, lines: &[Line]) -> String {
    let rows: Vec<String> = lines
        .iter()
        .map(|line| {
            let devices: Vec<String> = options
                .devices
                .iter()
                .zip(&line.devices)
                .map(|(device, figures)| result(device, figures))
                .collect();
            format!(
                "    {{\"operation\": {}, \"compared\": {}, \"ratio\": {},\n     \"devices\": [{}]}}",
                quoted(line.row.name),
                line.row.compared,
                value(line.ratio()),
                devices.join(",\n                 ")
            )
        })
        .collect();
    let mitigations: Vec<String> = host::vulnerabilities()
        .iter()
        .map(|(name, state)| format!("    {}: {}", quoted(name), quoted(state)))
        .collect();
    format!(
        "{{\n  \"unit\": {},\n  \"rounds\": {},\n  \"vulnerabilities\": {{\n{}\n  }},\n  \"rows\": [\n{}\n  ]\n}}\n",
        quoted(&options.unit),
        options.rounds,
        mitigations.join(",\n"),
        rows.join(",\n")
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn strings() {
        assert_eq!(super::quoted("a\"b\\c\n"), "\"a\\\"b\\\\c\\u000a\"");
        assert_eq!(super::number(Some(4.71)), "4.7");
        assert_eq!(super::number(Some(1024.4)), "1024");
    }
}

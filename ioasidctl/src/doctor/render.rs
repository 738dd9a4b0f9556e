//! A report as text for a person.

use std::fmt::Write;

use super::groups::{Group, State};
use super::{Finding, Level, Report};

/// The column where sentences begin, and where they end.
const INDENT: usize = 22;
const WIDTH: usize = 98;

/// The whole report.
pub(crate) fn text(report: &Report, colour: bool) -> String {
    let mut out = String::new();
    for finding in &report.findings {
        render_finding(&mut out, finding, colour);
    }
    if !report.groups.is_empty() {
        out.push('\n');
        render_groups(&mut out, &report.groups, colour);
    }
    out.push('\n');
    out.push_str(&summary(report));
    out
}

fn render_finding(out: &mut String, finding: &Finding, colour: bool) {
    let (word, code) = match finding.level {
        Level::Ok => ("ok", "32"),
        Level::Warning => ("warning", "33"),
        Level::Problem => ("problem", "1;31"),
    };
    let mut lines = wrap(&finding.text).into_iter();
    let first = lines.next().unwrap_or_default();
    // Twelve columns for the topic, ten for the level.
    let level = paint(&format!("{word:<10}"), code, colour);
    let _ = writeln!(out, "{:<12}{level}{first}", finding.topic);
    for line in lines {
        let _ = writeln!(out, "{:INDENT$}{line}", "");
    }
    for line in &finding.mend {
        let line = if line.starts_with('#') { paint(line, "2", colour) } else { line.clone() };
        let _ = writeln!(out, "{:INDENT$}  {line}", "");
    }
}

/// Breaks a sentence into lines; commands are never broken, so that they can be copied.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if INDENT + line.len() + 1 + word.len() > WIDTH {
            lines.push(word.into());
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines
}

fn render_groups(out: &mut String, groups: &[Group], colour: bool) {
    let rows = groups.iter().flat_map(|group| {
        group.devices.iter().enumerate().map(move |(index, device)| {
            let number = if index == 0 { group.group.to_string() } else { String::new() };
            let driver = device.driver.clone().unwrap_or_else(|| "-".into());
            let id = device.id.clone().unwrap_or_else(|| "-".into());
            let (state, code) = match group.state {
                State::Ready => ("ready", "32"),
                State::Blocked if device.blocks() => ("stands in the way", "1;31"),
                State::Blocked => ("blocked", "1;31"),
                State::Free => ("free", ""),
                State::Host => ("used by the host", "2"),
            };
            let cells =
                [number, device.name.clone(), id, device.kind.unwrap_or("-").into(), driver];
            (cells, state, code)
        })
    });
    let rows: Vec<_> = rows.collect();
    let head = ["GROUP", "DEVICE", "ID", "KIND", "DRIVER"];
    let width = |column: usize| {
        let cells = rows.iter().map(|(cells, ..)| cells[column].len());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; 5] = std::array::from_fn(width);
    let line = |cells: &[&str]| -> String {
        cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect()
    };
    let _ = writeln!(out, "{}STATE", line(&head));
    for (cells, state, code) in &rows {
        let cells: Vec<_> = cells.iter().map(String::as_str).collect();
        let _ = writeln!(out, "{}{}", line(&cells), paint(state, code, colour));
    }
}

fn summary(report: &Report) -> String {
    let count = |level| report.findings.iter().filter(|finding| finding.level == level).count();
    let number = |count: usize, what: &str| {
        let s = if count == 1 { "" } else { "s" };
        format!("{count} {what}{s}")
    };
    let counts =
        [number(count(Level::Problem), "problem"), number(count(Level::Warning), "warning")];
    let verdict = match report.worst() {
        Level::Problem => "not usable",
        _ => "usable",
    };
    format!("{verdict}: {}, {}\n", counts[0], counts[1])
}

fn paint(text: &str, code: &str, colour: bool) -> String {
    if colour && !code.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
}

//! Checks an audit file against the key that signed it, and reports on it.

use std::io::Write;
use std::process::ExitCode;

use coral_mcp::{AuditState, Checkpoint, audit_report, audit_table, check_audit, read_audit};

const USAGE: &str = "\
coral-audit verify FILE KEY [CHECKPOINT]
    checks FILE against KEY, the 64 hexadecimal digits of a verifying key; CHECKPOINT is a file with the
    latest checkpoint that was kept elsewhere
    ends with 0 if signatures vouch for all of it, 1 if it was tampered with, 2 if they vouch for a part
    of it, 3 if it can't be checked
coral-audit report FILE [HOURS]
    what each agent did at each server, by spans of HOURS (24)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args.as_slice() {
        ["verify", file, key] => verify(file, key, None),
        ["verify", file, key, checkpoint] => verify(file, key, Some(checkpoint)),
        ["report", file] => report(file, "24"),
        ["report", file, hours] => report(file, hours),
        _ => Err(USAGE.to_owned()),
    };
    let (text, code) = match done {
        Ok(done) => done,
        Err(problem) => {
            let _ = writeln!(std::io::stderr(), "{problem}");
            return ExitCode::from(3);
        }
    };
    let _ = write!(std::io::stdout(), "{text}");
    ExitCode::from(code)
}

fn read(file: &str) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| format!("reading `{file}`: {error}"))
}

fn verify(file: &str, key: &str, checkpoint: Option<&str>) -> Result<(String, u8), String> {
    let known: Option<Checkpoint> = match checkpoint {
        Some(path) => Some(
            serde_json::from_str(&read(path)?)
                .map_err(|error| format!("`{path}` holds no checkpoint: {error}"))?,
        ),
        None => None,
    };
    let check = check_audit(&read(file)?, key, known.as_ref()).map_err(|error| error.to_string())?;
    let (state, code) = match check.state() {
        AuditState::Intact => ("intact", 0),
        AuditState::Tampered => ("tampered with", 1),
        AuditState::Incomplete => ("signed in part", 2),
    };
    let mut text = format!("{file}: {state}; {} records, signed to {}", check.records, check.signed_to);
    if check.adopted > 0 {
        text.push_str(&format!("; {} were not signed when it was taken up again", check.adopted));
    }
    text.push('\n');
    for problem in &check.problems {
        text.push_str(&format!("  {problem}\n"));
    }
    Ok((text, code))
}

fn report(file: &str, hours: &str) -> Result<(String, u8), String> {
    let hours: u64 = hours.parse().ok().filter(|hours| *hours > 0).ok_or_else(|| USAGE.to_owned())?;
    let records = read_audit(&read(file)?).map_err(|error| error.to_string())?;
    Ok((audit_table(&audit_report(&records, hours.saturating_mul(3_600_000))), 0))
}

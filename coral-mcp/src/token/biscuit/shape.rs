//! Whether blocks are what is made here, by how they are printed.

use std::collections::BTreeSet;

use biscuit_auth::Biscuit;

/// All texts in the conditions of a token whose blocks have the shape of those made here, and no
/// other.
pub(super) fn texts(biscuit: &Biscuit) -> Option<BTreeSet<String>> {
    let mut texts = BTreeSet::new();
    for i in 0..biscuit.block_count() {
        let code = biscuit.print_block_source(i).ok()?;
        let lines: Vec<&str> = code.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let [run, now, rights] = lines.as_slice() else { return None };
        let mut bare = |line: &str| bare(line, &mut texts);
        let (run, now, rights) = (bare(run)?, bare(now)?, bare(rights)?);
        if run != "checkifrun(T);" || !is_time(&now) || !are_rights(&rights) {
            return None;
        }
    }
    Some(texts)
}

/// A line without its blanks, with `T` for each text, and for each list of texts; the texts go to
/// `texts`.
fn bare(line: &str, texts: &mut BTreeSet<String>) -> Option<String> {
    let mut bare = String::new();
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' => {}
            '"' => {
                let mut text = String::new();
                loop {
                    match rest.next()? {
                        '"' => break,
                        // How a text with these is printed is not taken for granted.
                        '\\' => return None,
                        c => text.push(c),
                    }
                }
                texts.insert(text);
                bare.push('T');
            }
            // Nothing of a condition but its texts may look like one.
            'T' => return None,
            c => bare.push(c),
        }
    }
    while bare.contains("T,T") {
        bare = bare.replace("T,T", "T");
    }
    Some(bare)
}

/// `check if now($n), $n >= 0, $n < 1`
fn is_time(line: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let Some(rest) = line.strip_prefix("checkifnow($n),").and_then(|rest| rest.strip_suffix(';')) else {
        return false;
    };
    match rest.split_once(',') {
        Some((from, until)) => {
            from.strip_prefix("$n>=").is_some_and(number) && until.strip_prefix("$n<").is_some_and(number)
        }
        None => rest.strip_prefix("$n<").is_some_and(number),
    }
}

/// `check if false`, or what each right allows.
fn are_rights(line: &str) -> bool {
    let Some(rest) = line.strip_prefix("checkif").and_then(|rest| rest.strip_suffix(';')) else {
        return false;
    };
    let one = "operation($o),{T}.contains($o),dir($d),{T}.contains($d";
    let is_right = |right: &str| {
        let right = right.strip_suffix(')').unwrap_or(right);
        right.strip_prefix(one).is_some_and(|more| matches!(more, "" | "),server($s),{T}.contains($s"))
    };
    rest == "false" || rest.split(")or").all(is_right)
}

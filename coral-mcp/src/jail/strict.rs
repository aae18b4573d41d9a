//! What bubblewrap is told for the level `strict`: a file system in which nothing exists but what
//! the server may reach.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::linux::{SCRATCH, SCRATCH_BYTES, SYSTEM, ZEROES};
use super::{Jail, Network};

/// Where the helper's own program is in there.
pub(super) const HELPER: &str = "/run/coral-jail";

/// The arguments before the command.
pub(super) fn arguments(jail: &Jail, helper: &Path, cwd: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::new();
    let mut add = |words: &[&dyn AsRef<std::ffi::OsStr>]| {
        args.extend(words.iter().map(|word| word.as_ref().to_owned()));
    };
    add(&[&"--unshare-all"]);
    if jail.network == Network::Host {
        add(&[&"--share-net"]);
    }
    // The rights are over the new namespaces alone, and the inner stage gives them up.
    add(&[&"--die-with-parent", &"--cap-add", &"ALL", &"--proc", &"/proc", &"--dev", &"/dev"]);
    if jail.cgroup.is_none() {
        add(&[&"--dev-bind", &ZEROES, &"/dev/zero"]);
    }
    for path in SYSTEM.iter().filter(|path| !path.starts_with("/proc") && !path.starts_with("/dev")) {
        add(&[&"--ro-bind-try", path, path]);
    }
    // It must be there to begin in, whether it may be read or not.
    add(&[&"--dir", &cwd]);
    for path in existing(&jail.read) {
        add(&[&"--ro-bind", &path, &path]);
    }
    for path in existing(&jail.write) {
        add(&[&"--bind", &path, &path]);
    }
    for path in existing(&jail.frozen) {
        add(&[&"--ro-bind", &path, &path]);
    }
    for path in existing(&jail.hidden) {
        if path.is_dir() {
            add(&[&"--perms", &"0000", &"--tmpfs", &path, &"--remount-ro", &path]);
        } else {
            add(&[&"--ro-bind", &"/dev/null", &path]);
        }
    }
    add(&[&"--size", &SCRATCH_BYTES.to_string(), &"--perms", &"0700", &"--tmpfs", &SCRATCH]);
    add(&[&"--ro-bind", &helper, &HELPER, &"--remount-ro", &"/", &"--chdir", &cwd, &"--", &HELPER]);
    args
}

fn existing(paths: &[PathBuf]) -> impl Iterator<Item = &PathBuf> {
    paths.iter().filter(|path| path.exists())
}

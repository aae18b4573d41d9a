//! Control groups (version 2): limits that hold for all of a server's processes together.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// The control group of one server. Dropping it kills what is in it.
#[derive(Debug)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes a group with these limits below `parent`.
    pub(crate) fn make(parent: &Path, memory: u64, processes: u64) -> io::Result<Self> {
        sweep(parent);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let group = Cgroup(parent.join(format!("coral-{}-{n}", std::process::id())));
        fs::create_dir(&group.0)?;
        group.set("memory.max", &memory.to_string())?;
        // Without this a server would go on in the swap space. Where there is none, neither is this.
        match group.set("memory.swap.max", "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        group.set("memory.oom.group", "1")?;
        group.set("pids.max", &processes.to_string())?;
        Ok(group)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        // Not created: the kernel makes the files, and only those of controllers that are there.
        let mut options = fs::OpenOptions::new();
        io::Write::write_all(&mut options.write(true).open(self.0.join(file))?, value.as_bytes())
    }

    /// Ends every process in it, wherever it went.
    pub(crate) fn kill(&self) {
        if let Err(error) = self.set("cgroup.kill", "1") {
            tracing::debug!(%error, "a control group could not be killed");
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.kill();
        // Its processes may take a moment to end; then the next group that is made removes it.
        let _ = fs::remove_dir(&self.0);
    }
}

/// Removes groups that are empty: only those can be removed.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with("coral-") {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The group of this process, if groups with limits may be made below it: its controllers `memory`
/// and `pids` are handed on to its children (`Delegate=` of systemd, with this process in a group
/// of its own below).
pub(crate) fn delegated() -> Option<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mount = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(Path::new)
        .find(|mount| mount.join("cgroup.controllers").exists())?;
    let own = mount.join(own);
    // The group itself, or the one around it: who delegates usually keeps the process in a leaf.
    [own.as_path(), own.parent()?].into_iter().find(|dir| hands_on(dir)).map(Path::to_owned)
}

/// Whether limits can be set on groups made in `dir`.
pub(crate) fn hands_on(dir: &Path) -> bool {
    let handed = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    let has = |wanted: &str| handed.split_whitespace().any(|controller| controller == wanted);
    has("memory")
        && has("pids")
        && rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
        && rustix::fs::access(dir.join("cgroup.procs"), rustix::fs::Access::WRITE_OK).is_ok()
}

/// Puts this process into a group.
pub(super) fn join(group: &Path) -> Result<(), String> {
    fs::write(group.join("cgroup.procs"), "0").map_err(|error| format!("joining its control group: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel's own directory looks like from here: files that are there to be written.
    fn stand_in(dir: &Path, files: &[&str]) {
        fs::create_dir_all(dir).unwrap();
        for file in files {
            fs::write(dir.join(file), "").unwrap();
        }
    }

    #[test]
    fn limits_are_written_only_where_controllers_are_handed_on() {
        let dir = tempfile::tempdir().unwrap();
        stand_in(dir.path(), &["cgroup.procs", "cgroup.subtree_control"]);
        assert!(!hands_on(dir.path()));
        fs::write(dir.path().join("cgroup.subtree_control"), "cpu memory\n").unwrap();
        assert!(!hands_on(dir.path()), "processes can't be bounded there");
        fs::write(dir.path().join("cgroup.subtree_control"), "cpu memory pids\n").unwrap();
        assert!(hands_on(dir.path()));
        // A plain directory has none of the files that the kernel makes, so nothing is pretended.
        assert_eq!(Cgroup::make(dir.path(), 1 << 20, 8).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_group_holds_its_limits_and_kills_at_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup(dir.path().join("coral-1-0"));
        let files = ["memory.max", "pids.max", "cgroup.kill", "cgroup.procs"];
        stand_in(group.path(), &files);
        group.set("memory.max", "1048576").unwrap();
        join(group.path()).unwrap();
        let path = group.path().to_owned();
        drop(group);
        let read = |file: &str| fs::read_to_string(path.join(file)).unwrap();
        assert_eq!(
            (read("memory.max"), read("cgroup.kill"), read("cgroup.procs")),
            ("1048576".into(), "1".into(), "0".into())
        );
    }
}

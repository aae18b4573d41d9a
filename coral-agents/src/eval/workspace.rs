//! A directory of its own for each run of a case.

use std::fmt;
use std::fs;
use std::future::Future;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use coral_core::{Error, Runner, digest};
use futures_util::future::BoxFuture;

use super::Case;
use crate::registry::read_text;

/// Gives each run a directory of its own, and a runner whose tools work in it.
#[derive(Clone)]
pub(super) struct Workspaces {
    root: PathBuf,
    make: Arc<dyn Fn(PathBuf) -> BoxFuture<'static, Result<Runner, Error>> + Send + Sync>,
}

impl Workspaces {
    pub(super) fn new<F, Fut>(root: PathBuf, make: F) -> Self
    where
        F: Fn(PathBuf) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Runner, Error>> + Send + 'static,
    {
        Workspaces { root, make: Arc::new(move |dir| Box::pin(make(dir))) }
    }

    /// A new directory with the files of the case in it, and the runner for it.
    pub(super) async fn open(
        &self,
        candidate: &str,
        case: &Case,
        round: u32,
    ) -> Result<(PathBuf, Runner), Error> {
        let dir = self.root.join(name(candidate)).join(format!("{}-{round}", name(&case.name)));
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(|problem| failed("clearing", &dir, &problem))?;
        }
        fs::create_dir_all(&dir).map_err(|problem| failed("making", &dir, &problem))?;
        for (path, text) in &case.files {
            let path = inside(&dir, path)?;
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|problem| failed("making", parent, &problem))?;
            }
            fs::write(&path, text).map_err(|problem| failed("writing", &path, &problem))?;
        }
        let runner = (self.make)(dir.clone()).await?;
        Ok((dir, runner))
    }
}

impl fmt::Debug for Workspaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workspaces").field("root", &self.root).finish_non_exhaustive()
    }
}

fn failed(doing: &str, path: &Path, problem: &std::io::Error) -> Error {
    Error::storage(format!("{doing} `{}`", path.display()), problem)
}

/// A name as a directory may have it: the same for no two texts.
fn name(text: &str) -> String {
    let keeps = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    if !text.is_empty() && text.len() <= 64 && text.chars().all(keeps) {
        return text.to_owned();
    }
    let name: String = text.chars().take(64).map(|c| if keeps(c) { c } else { '_' }).collect();
    // What was changed is told apart by its hash; case too, which not every file system tells apart.
    let hash = digest(text).unwrap_or_default();
    format!("{name}-{}", hash.get(..8).unwrap_or_default())
}

/// `path` below `dir`.
fn inside(dir: &Path, path: &str) -> Result<PathBuf, Error> {
    let relative = Path::new(path.strip_prefix("/project/").unwrap_or(path));
    if path.is_empty()
        || !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(Error::invalid(
            format!("path `{path}`"),
            "it must be relative and stay inside the workspace",
        ));
    }
    Ok(dir.join(relative))
}

/// The text of a file that a run wrote.
pub(super) fn read(dir: &Path, path: &str) -> Result<String, Error> {
    let path = inside(dir, path)?;
    // A link could lead to any file of this machine, and its text into a report.
    let real = path.canonicalize().map_err(|problem| failed("reading", &path, &problem))?;
    let dir = dir.canonicalize().map_err(|problem| failed("reading", dir, &problem))?;
    if !real.starts_with(&dir) {
        return Err(Error::invalid(format!("path `{}`", path.display()), "it leads out of the workspace"));
    }
    read_text(&real)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_names_share_a_directory() {
        let long = "a".repeat(300);
        let texts = ["a b", "a_b", "a/b", "A_b", "", "_", "é", "è", "..", &long, &long[..299]];
        let names: BTreeSet<String> = texts.iter().map(|text| name(text)).collect();
        assert_eq!(names.len(), texts.len(), "{names:?}");
        for name in names {
            let one_part = Path::new(&name).components().all(|part| matches!(part, Component::Normal(_)));
            assert!(one_part && name.len() < 100, "{name}");
        }
        assert_eq!(name("plain-case_1"), "plain-case_1");
    }
}

//! Following a directory by the notifications of the operating system.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use coral_core::Error;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::{Changes, LiveRegistry};
use crate::registry::KIND_DIRS;

/// An editor writes a file in several steps, each of which is told; what comes within this time is read once.
const SETTLED: Duration = Duration::from_millis(20);

/// How often a directory is looked for that was moved or deleted: nobody tells when it comes back.
const GONE: Duration = Duration::from_secs(1);

/// The thread that follows a directory; it ends when this is dropped.
#[derive(Debug)]
#[must_use = "the directory is followed as long as this is held"]
pub struct Following {
    tell: Sender<Told>,
    thread: Option<JoinHandle<()>>,
}

enum Told {
    /// Something of the directory may have changed.
    Changed,
    /// Nobody wants to know any more.
    Stop,
}

impl Drop for Following {
    fn drop(&mut self) {
        // A thread that has ended can't be told, and need not be.
        let _ = self.tell.send(Told::Stop);
        // A listener that drops this on its own thread can't wait for itself.
        if let Some(thread) =
            self.thread.take().filter(|thread| thread.thread().id() != thread::current().id())
        {
            // A listener that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl LiveRegistry {
    /// [`refresh`](Self::refresh)es whenever the operating system tells of a change, from a thread of its own, and tells
    /// `listener` what changed or went wrong, until the answer is dropped. What has changed since it was read last is
    /// told first.
    ///
    /// Where the operating system tells nothing, as with most network file systems, call [`poll`](Self::poll) on a timer.
    ///
    /// # Errors
    /// [`Storage`](coral_core::ErrorKind::Storage) if the directory can't be watched.
    pub fn follow(
        self: &Arc<Self>,
        listener: impl Fn(Result<Changes, Error>) + Send + 'static,
    ) -> Result<Following, Error> {
        let (tell, told) = channel();
        let mut watcher = watcher(tell.clone())?;
        watch(&mut watcher, &self.dir)?;
        let registry = self.clone();
        let thread = thread::spawn(move || follow(&registry, watcher, &told, &listener));
        Ok(Following { tell, thread: Some(thread) })
    }
}

fn watcher(tell: Sender<Told>) -> Result<RecommendedWatcher, Error> {
    // What it tells of does not matter, an overflow of its queue included: the directory is read anew.
    let told = move |event: notify::Result<notify::Event>| {
        if event.map_or(true, |event| !event.kind.is_access()) {
            // Nobody listens any more.
            let _ = tell.send(Told::Changed);
        }
    };
    notify::recommended_watcher(told).map_err(|error| Error::storage("watching a directory", error))
}

/// Watches the directory and those in it that are read. What is watched already is left as it is, so this is
/// called again when something has changed: a directory may be new, or another one of the same name.
fn watch(watcher: &mut RecommendedWatcher, dir: &Path) -> Result<(), Error> {
    let inner = KIND_DIRS.into_iter().map(|name| dir.join(name)).filter(|path| path.is_dir());
    for path in std::iter::once(dir.to_owned()).chain(inner) {
        watcher.watch(&path, RecursiveMode::NonRecursive).map_err(|error| {
            Error::storage("watching a directory", error).at(path.display().to_string()).with_help(
                "where files can't be watched, or too many are (`fs.inotify.max_user_watches`), call `poll` on a timer",
            )
        })?;
    }
    Ok(())
}

fn follow(
    registry: &LiveRegistry,
    mut watcher: RecommendedWatcher,
    told: &Receiver<Told>,
    listener: &dyn Fn(Result<Changes, Error>),
) {
    let mut failed: Option<Error> = None;
    loop {
        // Watched first: what comes between the two is read.
        let found = watch(&mut watcher, &registry.dir).and_then(|()| registry.refresh());
        match found {
            Ok(changes) => {
                failed = None;
                changes.into_iter().for_each(|changes| listener(Ok(changes)));
            }
            // Said once, not at every look.
            Err(error) if failed.as_ref() == Some(&error) => {}
            Err(error) => {
                failed = Some(error.clone());
                listener(Err(error));
            }
        }
        let mut next = match failed {
            None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(_) => told.recv_timeout(GONE),
        };
        while let Ok(Told::Changed) = next {
            next = told.recv_timeout(SETTLED);
        }
        if !matches!(next, Err(RecvTimeoutError::Timeout)) {
            return;
        }
    }
}

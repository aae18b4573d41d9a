//! The exam that every journal sits, whoever wrote it.
//!
//! Say how a journal of yours is made and opened, and let one macro expand to every test:
//!
//! ```
//! use std::sync::Arc;
//!
//! use coral_core::{Error, MemoryJournal};
//! use coral_state::conformance::Backend;
//!
//! struct Memory(Arc<MemoryJournal>);
//!
//! #[async_trait::async_trait]
//! impl Backend for Memory {
//!     type Journal = Arc<MemoryJournal>;
//!
//!     async fn create() -> Self {
//!         Memory(Arc::new(MemoryJournal::new()))
//!     }
//!
//!     async fn open(&self) -> Result<Self::Journal, Error> {
//!         Ok(self.0.clone())
//!     }
//! }
//!
//! coral_state::journal_conformance!(Memory);
//! ```
//!
//! The macro belongs in a module of its own in an integration test, one for each backend. A
//! backend that outlives its process also says its [`place`](Backend::place); the exam then starts
//! the test's own executable as a writer and kills it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "an exam fails by panicking")]

mod checks;
mod crash;
mod events;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{Blobs, Error, Journal, Seq};

use crate::follow::{Follower, Polled};

/// How the exam gets at a journal.
#[async_trait]
pub trait Backend: Send + Sync + Sized + 'static {
    /// The journal examined.
    type Journal: Journal + 'static;

    /// Makes a new and empty place for a journal, such as a temporary file.
    async fn create() -> Self;

    /// Opens the journal at this place. Several may be open at once.
    async fn open(&self) -> Result<Self::Journal, Error>;

    /// What another process finds this place by; `None` if nothing outlives the process.
    fn place(&self) -> Option<String> {
        None
    }

    /// The place that [`place`](Backend::place) named in another process.
    fn at(_place: &str) -> Option<Self> {
        None
    }

    /// Follows a run in the way that is this backend's own.
    fn follow(journal: Arc<Self::Journal>, run: &str, from: Seq) -> Follower {
        Follower::new(Polled::new(journal, Duration::from_millis(5)), run, from)
    }

    /// The blob store that belongs to this place, if there is one.
    async fn blobs(&self) -> Option<Arc<dyn Blobs>> {
        None
    }

    /// A copy of this place as a power cut in the middle of the last write leaves it: with the last
    /// `bytes` of what was written last missing. Called while a journal is open. `None` where
    /// that is not this backend's own to survive.
    async fn torn(&self, _bytes: u64) -> Option<Self> {
        None
    }

    /// The bytes that the journal takes, where that can be told.
    async fn bytes(&self) -> Option<u64> {
        None
    }
}

/// Says that a check did not apply: a pass that shows nothing must not look like one that does.
#[expect(clippy::print_stderr, reason = "a test's output is where it is looked for")]
fn skipped(why: &str) {
    eprintln!("did not apply: {why}");
}

/// Names every check once: for the macro that tests are made by, and for finding it by name.
macro_rules! checks {
    ($dollar:tt $($name:ident $doc:literal,)*) => {
        /// Expands to one `#[test]` for each check of a journal, given its
        /// [`Backend`](crate::conformance::Backend).
        #[macro_export]
        macro_rules! journal_conformance {
            ($dollar backend:ty) => {
                $(
                    #[doc = $doc]
                    #[test]
                    fn $name() {
                        ::coral_state::conformance::examine::<$dollar backend>(
                            stringify!($name),
                            concat!(module_path!(), "::", stringify!($name)),
                        );
                    }
                )*
            };
        }

        /// Runs one check by its name; `test` is the path of the test that calls. For the macro.
        #[doc(hidden)]
        pub fn examine<B: Backend>(name: &str, test: &str) {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                match name {
                    $(stringify!($name) => checks::$name::<B>(test).await,)*
                    _ => panic!("no check is called `{name}`"),
                }
            });
        }
    };
}

checks! { $
    begins_empty "A run that nobody began has no head and no records.",
    begins_a_run_once "A run begins with its first records, once, and its holder is left alone by who comes later.",
    appends_in_order "Records come back in order, numbered from 1.",
    keeps_events_exactly "Every kind of event comes back as it was.",
    reads_from_and_up_to "Reading starts at a seq and stops at a limit.",
    refuses_another_seq "An append must say where it stands.",
    refuses_bad_batches "A batch must be numbered without gaps and begin a run once.",
    appends_whole_batches "A refused batch leaves nothing behind.",
    allows_an_empty_batch "An empty batch changes nothing and is still checked.",
    needs_an_epoch "Nobody appends who did not take the run over.",
    fences_older_epochs "Who lost a run can't write to it.",
    raises_epochs_for_each_taker "No two takers hold the same epoch.",
    folds_heads "The head is the fold of the records.",
    filters_runs "Runs are listed by filter, in the order of their ids.",
    takes_any_id "Ids and names may hold any text.",
    keeps_large_payloads "An event of some megabytes is kept like any other.",
    keeps_payloads_by_reference "What is too large for an event is kept beside it, once.",
    survives_torn_writes "A write that was cut off leaves whole batches.",
    serves_many_runs_at_once "Writers of many runs do not disturb one another.",
    lets_one_racer_win "Of several writers at one seq exactly one succeeds.",
    shows_writes_to_other_handles "Two journals at one place see and fence each other.",
    follows_in_order "Who follows a run from a seq gets every record from there on, once and in order.",
    follows_what_others_append "Who follows a run hears what another journal appends.",
    reopens "What was appended is there when the journal is opened again.",
    keeps_dropped_appends_whole "A dropped append happened in whole or not at all.",
    grows_linearly "Bytes grow with the records and stay near their size.",
    survives_kill "Nothing acknowledged is lost and nothing is half there when the writer is killed.",
}

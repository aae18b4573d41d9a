//! Runs that only wait, let go of.
//!
//! A run may wait for a person for days, and a service may have thousands that do. While nothing of a run
//! works, all that it is stands in its journal. So its driver is dropped, and what stays is a task that listens
//! for a message or for a time: then the journal is read again, as after a restart, and the run goes on.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::deadline::Deadlines;
use super::wait::Dues;
use super::{Driver, RunShared};
use crate::error::{Error, ErrorKind};
use crate::event::{Event, Seq};
use crate::hash::jitter;
use crate::journal::PAGE;
use crate::migration::Lineage;
use crate::program;

/// How long a run must have rested for each of its events before it is let go of. Reading an event back takes
/// about a hundredth of this, so waiting costs a hundredth more at the most, however long a run is.
const REST_PER_EVENT: Duration = Duration::from_micros(100);

/// What is left of a driver.
pub(super) struct Parked {
    shared: Arc<RunShared>,
    program: Arc<program::Inner>,
    epoch: u64,
    seq: Seq,
    migrated: bool,
    dues: Dues,
    deadlines: Deadlines,
}

impl Driver {
    /// Whether nothing of the run works and nothing is on its way: all that it does is wait.
    pub(super) fn rests(&self) -> bool {
        self.working == 0 && !self.waits.is_empty() && self.batch.is_empty() && self.shared.inbox.is_empty()
    }

    /// When a run that has rested since `since` is let go of.
    pub(super) fn park_at(&self, since: Instant) -> Instant {
        since + REST_PER_EVENT.saturating_mul(u32::try_from(self.seq).unwrap_or(u32::MAX))
    }

    /// What is left once all is dropped that the journal has too.
    pub(super) fn park(&mut self) -> Parked {
        self.shared.inbox.shrink();
        Parked {
            shared: self.shared.clone(),
            program: self.program.clone(),
            epoch: self.epoch,
            seq: self.seq,
            migrated: self.migrated,
            dues: self.waits.dues(),
            deadlines: std::mem::take(&mut self.deadlines),
        }
    }
}

impl Parked {
    /// Waits until the run has something to do, and gives the driver for it.
    ///
    /// # Errors
    /// [`Suspended`](ErrorKind::Suspended) if it is to stop; [`Fenced`](ErrorKind::Fenced) if another
    /// process took it over meanwhile; those of the journal.
    pub(super) async fn wait(&self) -> Result<Box<Driver>, Error> {
        let due = self.dues.first().map(|(due, _)| *due);
        match due.into_iter().chain(self.deadlines.next()).min() {
            Some(due) => {
                let _ = tokio::time::timeout_at(due, self.shared.inbox.arrived()).await;
            }
            None => self.shared.inbox.arrived().await,
        }
        if self.shared.inbox.asks_to_stop() {
            return Err(Error::new(ErrorKind::Suspended { run: self.shared.id.to_string() }));
        }
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match Box::pin(self.read()).await {
                Ok(driver) => return Ok(driver),
                Err(error) => error,
            };
            let spread = jitter(&format!("{}/parked/{}/{tries}", self.shared.id, self.seq));
            match self.shared.ports.retry.delay_ms(tries, &error, spread) {
                Some(delay_ms) => tokio::time::sleep(Duration::from_millis(delay_ms)).await,
                None => return Err(error),
            }
        }
    }

    async fn read(&self) -> Result<Box<Driver>, Error> {
        let (journal, run) = (&self.shared.ports.journal, &*self.shared.id);
        let lineage = if self.migrated { Lineage::read(&**journal, run).await? } else { None };
        let mut driver = Box::new(Driver::new(self.shared.clone(), self.program.clone(), self.epoch));
        let mut held = self.epoch;
        loop {
            let page = journal.read(run, driver.seq + 1, PAGE).await?;
            for record in &page {
                if let Event::RunResumed { epoch } = record.event {
                    held = epoch;
                }
                match &lineage {
                    Some(lineage) => driver.fold(&lineage.rename(record)),
                    None => driver.fold(record),
                }
            }
            if page.len() < PAGE {
                break;
            }
        }
        if driver.seq != self.seq {
            let fenced = ErrorKind::Fenced { run: run.to_owned(), held: self.epoch, found: held };
            return Err(Error::new(fenced).with_help("another process works on this run; let it"));
        }
        driver.waits.know(self.dues.clone());
        driver.deadlines = self.deadlines.clone();
        driver.prepare();
        Ok(driver)
    }
}

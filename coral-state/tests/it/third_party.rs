//! A journal that this crate knows nothing of: a directory with a file of lines for each run.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use coral_core::{BlobRef, Error, Journal, Record, RunFilter, RunHead, Seq, check_append};

struct Lines {
    dir: PathBuf,
}

/// One line: the epoch that holds the run from here on, or a batch.
#[derive(serde::Serialize, serde::Deserialize)]
enum Line {
    Run(String),
    Epoch(u64),
    Batch(Vec<Record>),
}

#[derive(Default)]
struct Log {
    run: String,
    epoch: u64,
    records: Vec<Record>,
    whole: u64,
}

fn bad(error: impl std::fmt::Display) -> Error {
    Error::storage("use the lines", error)
}

impl Lines {
    /// What is in a file, up to a line that was cut off.
    fn parse(file: &mut File) -> Result<Log, Error> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(bad)?;
        let mut log = Log::default();
        for line in bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            match serde_json::from_slice(line).map_err(bad)? {
                Line::Run(run) => log.run = run,
                Line::Epoch(epoch) => log.epoch = epoch,
                Line::Batch(batch) => log.records.extend(batch),
            }
            log.whole += line.len() as u64;
        }
        Ok(log)
    }

    /// Appends what `decide` says, with nobody else at the file.
    fn change(&self, run: &str, decide: impl FnOnce(&Log) -> Result<Vec<Line>, Error>) -> Result<(), Error> {
        let path = self.dir.join(BlobRef::of(run.as_bytes()).sha256);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(bad)?;
        file.lock().map_err(bad)?;
        let log = Self::parse(&mut file)?;
        let mut text = Vec::new();
        for line in decide(&log)? {
            serde_json::to_writer(&mut text, &line).map_err(bad)?;
            text.push(b'\n');
        }
        file.set_len(log.whole).map_err(bad)?;
        file.write_all(&text).and_then(|()| file.sync_data()).map_err(bad)
    }

    fn log(&self, path: PathBuf) -> Result<Log, Error> {
        match File::open(path) {
            Ok(mut file) => file.lock_shared().map_err(bad).and_then(|()| Self::parse(&mut file)),
            Err(_) => Ok(Log::default()),
        }
    }

    fn of(&self, run: &str) -> Result<Log, Error> {
        self.log(self.dir.join(BlobRef::of(run.as_bytes()).sha256))
    }
}

fn head(log: &Log, run: &str) -> RunHead {
    let mut head = RunHead::new(run);
    log.records.iter().for_each(|record| head.apply(record));
    head
}

#[async_trait::async_trait]
impl Journal for Lines {
    async fn acquire(&self, run: &str) -> Result<u64, Error> {
        let mut epoch = 0;
        self.change(run, |log| {
            epoch = log.epoch + 1;
            Ok(vec![Line::Run(run.to_owned()), Line::Epoch(epoch)])
        })?;
        Ok(epoch)
    }

    async fn append(
        &self,
        run: &str,
        epoch: u64,
        expected: Seq,
        records: Arc<[Record]>,
    ) -> Result<(), Error> {
        self.change(run, |log| {
            check_append(&head(log, run), log.epoch, epoch, expected, &records)?;
            Ok(vec![Line::Batch(records.to_vec())])
        })
    }

    async fn read(&self, run: &str, from: Seq, limit: usize) -> Result<Vec<Record>, Error> {
        Ok(self.of(run)?.records.into_iter().filter(|record| record.seq >= from).take(limit).collect())
    }

    async fn head(&self, run: &str) -> Result<Option<RunHead>, Error> {
        Ok(Some(head(&self.of(run)?, run)).filter(|head| head.last_seq > 0))
    }

    async fn runs(&self, filter: &RunFilter) -> Result<Vec<RunHead>, Error> {
        let mut heads = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(bad)? {
            let log = self.log(entry.map_err(bad)?.path())?;
            heads.push(head(&log, &log.run));
        }
        heads.retain(|head| head.last_seq > 0 && filter.matches(head));
        heads.sort_by(|a, b| a.run.cmp(&b.run));
        Ok(heads)
    }
}

/// What its author writes to have it examined.
mod exam {
    use super::Lines;
    use coral_core::Error;
    use coral_state::conformance::Backend;

    struct Place {
        path: String,
        _dir: Option<tempfile::TempDir>,
    }

    #[async_trait::async_trait]
    impl Backend for Place {
        type Journal = Lines;

        async fn create() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Place { path: dir.path().to_str().unwrap().to_owned(), _dir: Some(dir) }
        }
        async fn open(&self) -> Result<Lines, Error> {
            Ok(Lines { dir: self.path.clone().into() })
        }
        fn place(&self) -> Option<String> {
            Some(self.path.clone())
        }
        fn at(place: &str) -> Option<Self> {
            Some(Place { path: place.to_owned(), _dir: None })
        }
    }
    coral_state::journal_conformance!(Place);
}

#[test]
fn the_exam_costs_a_backend_thirty_lines_at_the_most() {
    let exam = include_str!("third_party.rs").split_once("\nmod exam {").unwrap().1;
    let lines = exam.split_once("\n}").unwrap().0.lines().count();
    assert!(lines <= 30, "{lines} lines");
}

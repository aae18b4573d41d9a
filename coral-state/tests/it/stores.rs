//! Blob stores.

use coral_core::{BlobRef, Blobs};
use coral_state::{BlobSweep, DirectoryBlobs, KeyRing, MasterKey, SqliteStore};

use crate::support::holds;

async fn keeps_blobs(open: impl Fn() -> Box<dyn Blobs>) {
    let blobs = open();
    let large: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
    for bytes in [&b""[..], b"coral", &large] {
        let name = blobs.put(bytes).await.unwrap();
        assert_eq!(name, BlobRef::of(bytes));
        assert_eq!(blobs.put(bytes).await.unwrap(), name);
        assert_eq!(blobs.get(&name).await.unwrap().as_deref(), Some(bytes));
        assert_eq!(open().get(&name).await.unwrap().as_deref(), Some(bytes), "opened again");
    }
    assert_eq!(blobs.get(&BlobRef::of(b"other")).await.unwrap(), None);
    let outside = BlobRef { sha256: "../../../etc/passwd".into(), bytes: 1 };
    assert_eq!(blobs.get(&outside).await.unwrap_err().code(), "CORAL0001");
    let lie = BlobRef { bytes: 4, ..BlobRef::of(b"coral") };
    assert_eq!(blobs.get(&lie).await.unwrap_err().code(), "CORAL0016");
}

#[tokio::test]
async fn sqlite_keeps_blobs_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("coral.db");
    keeps_blobs(|| Box::new(SqliteStore::open(&path).unwrap().blobs())).await;
    let conn = rusqlite::Connection::open(&path).unwrap();
    let count: u32 = conn.query_row("SELECT count(*) FROM blobs", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 3);
}

#[tokio::test]
async fn a_directory_keeps_blobs_once() {
    let dir = tempfile::tempdir().unwrap();
    keeps_blobs(|| Box::new(DirectoryBlobs::open(dir.path()).unwrap())).await;
    let files: usize = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap().count())
        .sum();
    assert_eq!(files, 3, "no drafts are left");
}

#[tokio::test]
async fn a_sealed_directory_shows_nothing_and_is_erased_for_good() {
    const MARKER: &[u8] = b"a-marker-that-nothing-else-contains";
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
    let ring = KeyRing::new(old.clone());
    keeps_blobs(|| Box::new(DirectoryBlobs::open_sealed(dir.path(), "reef", &ring).unwrap())).await;
    let blobs = DirectoryBlobs::open_sealed(dir.path(), "reef", &ring).unwrap();
    let name = blobs.put(MARKER).await.unwrap();
    assert!(!holds(dir.path(), MARKER));
    let mut files = Vec::new();
    for folder in std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()) {
        if folder.is_dir() {
            files.extend(std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    let named =
        |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().ends_with(&name.sha256[2..]);
    assert!(!files.iter().any(named), "names tell nothing of what they name");
    // The file of another blob in its place is seen.
    let other = files.iter().find(|path| std::fs::metadata(path).unwrap().len() > 1_000).unwrap();
    let sizes =
        |size: u64| files.iter().find(move |path| std::fs::metadata(path).unwrap().len() == size).unwrap();
    let place = sizes(2 * 37 + 40 + MARKER.len() as u64);
    let kept = std::fs::read(place).unwrap();
    std::fs::copy(other, place).unwrap();
    assert_eq!(blobs.get(&name).await.unwrap_err().code(), "CORAL0016");
    std::fs::write(place, kept).unwrap();

    let stranger = KeyRing::new(MasterKey::generate().unwrap());
    let error = DirectoryBlobs::open_sealed(dir.path(), "reef", &stranger).unwrap_err();
    assert!(error.to_string().contains("older"), "{error}");
    let both = KeyRing::new(new.clone()).and_older(old);
    drop(DirectoryBlobs::open_sealed(dir.path(), "reef", &both).unwrap());
    let ring = KeyRing::new(new);
    let rotated = DirectoryBlobs::open_sealed(dir.path(), "reef", &ring).unwrap();
    assert_eq!(rotated.get(&name).await.unwrap().as_deref(), Some(MARKER));

    rotated.erase().await.unwrap();
    rotated.erase().await.unwrap();
    for error in [
        blobs.get(&name).await.err(),
        blobs.put(b"more").await.err(),
        DirectoryBlobs::open_sealed(dir.path(), "reef", &ring).err(),
    ] {
        assert!(error.is_none_or(|error| error.code() == "CORAL0003"));
    }
    assert_eq!(blobs.put(b"more").await.unwrap_err().code(), "CORAL0003", "whoever holds the key yet");
    let plain = DirectoryBlobs::open(dir.path().join("plain")).unwrap();
    assert_eq!(plain.erase().await.unwrap_err().code(), "CORAL0001");
}

#[tokio::test]
async fn what_a_killed_process_left_half_done_is_tidied_up() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = DirectoryBlobs::open(dir.path()).unwrap();
    let [old, wanted, young] = [b"old", b"wan", b"new"].map(|bytes| BlobRef::of(bytes));
    let folder = |blob: &BlobRef| dir.path().join(&blob.sha256[..2]);
    let swept = |blob: &BlobRef| folder(blob).join(format!("{}.swept-7", &blob.sha256[2..]));
    let hours = |count: u64| std::time::SystemTime::now() - std::time::Duration::from_secs(count * 3_600);
    let write = |path: std::path::PathBuf, bytes: &[u8], age: u64| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        std::fs::File::options().append(true).open(&path).unwrap().set_modified(hours(age)).unwrap();
        path
    };
    let draft = write(folder(&old).join("draft-7-0"), b"half", 9);
    let at_work = write(folder(&old).join("draft-8-0"), b"half", 0);
    let removing = write(swept(&old), b"old", 9);
    write(swept(&wanted), b"wan", 2);
    write(swept(&young), b"new", 0);
    let cutoff = hours(4).duration_since(std::time::UNIX_EPOCH).unwrap();
    let found = blobs.older_than(u64::try_from(cutoff.as_millis()).unwrap()).await.unwrap();
    assert!(found.is_empty());
    assert!(!draft.exists() && !removing.exists() && at_work.exists());
    assert!(blobs.get(&wanted).await.unwrap().is_some(), "it was put again, and is back");
    assert!(swept(&young).exists(), "its process may be at work");
}

#[tokio::test]
async fn damaged_blobs_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = DirectoryBlobs::open(dir.path()).unwrap();
    let name = blobs.put(b"coral").await.unwrap();
    let (folder, file) = name.sha256.split_at(2);
    std::fs::write(dir.path().join(folder).join(file), b"colar").unwrap();
    assert_eq!(blobs.get(&name).await.unwrap_err().code(), "CORAL0016");
}

#[tokio::test]
async fn racing_puts_of_one_blob_all_succeed() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = DirectoryBlobs::open(dir.path()).unwrap();
    let mut puts = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let blobs = blobs.clone();
        puts.spawn(async move { blobs.put(b"the same").await.unwrap() });
    }
    assert!(puts.join_all().await.into_iter().all(|name| name == BlobRef::of(b"the same")));
}

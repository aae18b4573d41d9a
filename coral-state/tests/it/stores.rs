//! Blob stores.

use coral_core::{BlobRef, Blobs};
use coral_state::{DirectoryBlobs, SqliteStore};

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

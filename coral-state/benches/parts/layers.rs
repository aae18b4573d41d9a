//! A hit in the layered cache, beside bare moka.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use coral_core::{Cache, MemoryCache};
use coral_state::{LayerOptions, LayeredCache};

use super::{Runtime, Table, is_quick, paired};

pub(super) fn hits(runtime: &Runtime, _: &Path, table: &mut Table) {
    let count = if is_quick() { 1_000 } else { 200_000 };
    let keys: Vec<String> = (0..1_000).map(|n| format!("session:{n}")).collect();
    let value: Arc<[u8]> = vec![7; 300].into();
    let layered = LayeredCache::new(LayerOptions::default()).over(Arc::new(MemoryCache::new(10_000)));
    let moka: moka::future::Cache<String, Arc<[u8]>> = moka::future::Cache::new(64 << 20);
    runtime.block_on(async {
        for key in &keys {
            layered.put(key, value.clone(), None).await.unwrap();
            moka.insert(key.clone(), value.clone()).await;
        }
    });
    let each = |start: Instant| start.elapsed().as_secs_f64() * 1e9 / f64::from(count);
    let (ours, theirs) = paired(
        9,
        |_| {
            let start = Instant::now();
            runtime.block_on(async {
                for key in keys.iter().cycle().take(count as usize) {
                    assert!(layered.get(key).await.unwrap().is_some());
                }
            });
            each(start)
        },
        |_| {
            let start = Instant::now();
            runtime.block_on(async {
                for key in keys.iter().cycle().take(count as usize) {
                    assert!(moka.get(key).await.is_some());
                }
            });
            each(start)
        },
    );
    table.row("hit in memory of the layered cache", "ns", ours, "moka", theirs);
}

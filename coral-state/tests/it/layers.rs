//! The cache in layers, over a real Redis server and a file.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use coral_core::{Cache, Clock, Error, ManualClock, MemoryCache, SystemClock};
use coral_state::{
    CachedSnapshots, KeyRing, LayerOptions, LayeredCache, MasterKey, RedisCache, SealedCache, Sessions,
    Snapshots, SqliteStore, WorkflowState,
};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::servers::{lasting_redis, redis};
use crate::support::{holds, keep, team_run};

fn bytes(text: &str) -> Arc<[u8]> {
    text.as_bytes().into()
}

async fn text(cache: &impl Cache, key: &str) -> Option<String> {
    cache.get(key).await.unwrap().map(|value| String::from_utf8(value.to_vec()).unwrap())
}

/// A layer that counts what it is asked, fails when told to, and stops between finding a value and
/// telling it.
#[derive(Default)]
struct Probe {
    inner: Mutex<HashMap<String, Arc<[u8]>>>,
    gets: AtomicU32,
    broken: AtomicU32,
    stop: Mutex<Option<Stop>>,
}

/// Tells that it was reached, and waits until it may go on.
struct Stop(oneshot::Sender<()>, oneshot::Receiver<()>);

impl Probe {
    fn new() -> Arc<Self> {
        Arc::default()
    }

    fn check(&self) -> Result<(), Error> {
        match self.broken.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(Error::storage("probe", "broken")),
        }
    }

    /// Stops the next get; gives what tells that it stopped, and what lets it go on.
    fn stop(&self) -> (oneshot::Receiver<()>, oneshot::Sender<()>) {
        let ((tell, told), (free, freed)) = (oneshot::channel(), oneshot::channel());
        *self.stop.lock().unwrap() = Some(Stop(tell, freed));
        (told, free)
    }

    /// Whether anything lies under `key`, whatever its name begins with.
    fn has(&self, key: &str) -> bool {
        let inner = self.inner.lock().unwrap();
        inner.keys().any(|name| name.rsplit(' ').next() == Some(key))
    }

    fn lose(&self, key: &str) {
        self.inner.lock().unwrap().retain(|name, _| name.rsplit(' ').next() != Some(key));
    }
}

#[async_trait]
impl Cache for Probe {
    async fn get(&self, key: &str) -> Result<Option<Arc<[u8]>>, Error> {
        if !key.contains("epoch") {
            self.gets.fetch_add(1, Ordering::SeqCst);
        }
        self.check()?;
        // So that callers at once are really at once.
        tokio::task::yield_now().await;
        let found = self.inner.lock().unwrap().get(key).cloned();
        let stops = found.is_some() && !key.contains("epoch");
        let stop = if stops { self.stop.lock().unwrap().take() } else { None };
        if let Some(Stop(tell, freed)) = stop {
            tell.send(()).unwrap();
            freed.await.unwrap();
        }
        Ok(found)
    }

    async fn put(&self, key: &str, value: Arc<[u8]>, _: Option<u64>) -> Result<(), Error> {
        self.check()?;
        self.inner.lock().unwrap().insert(key.to_owned(), value);
        Ok(())
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        self.check()?;
        self.inner.lock().unwrap().remove(key);
        Ok(())
    }
}

#[tokio::test]
async fn reading_fills_what_is_above_and_writing_goes_through() {
    let (upper, lower) = (Probe::new(), Probe::new());
    let cache = LayeredCache::new(LayerOptions::default()).over(upper.clone()).over(lower.clone());
    cache.put("k", bytes("v"), None).await.unwrap();
    for layer in [&upper, &lower] {
        assert!(layer.has("k"));
    }
    upper.lose("k");
    let fresh = LayeredCache::new(LayerOptions::default()).over(upper.clone()).over(lower.clone());
    assert_eq!(text(&fresh, "k").await.as_deref(), Some("v"));
    assert!(upper.has("k"), "filled on the way up");
    assert_eq!(text(&fresh, "k").await.as_deref(), Some("v"));
    let stats = fresh.stats();
    assert_eq!((stats.memory_hits, stats.layer_hits, stats.misses), (1, vec![0, 1], 0));
    fresh.remove("k").await.unwrap();
    assert_eq!(text(&fresh, "k").await, None);
    assert!(!lower.has("k") && !upper.has("k"));
}

#[tokio::test]
async fn what_is_on_its_way_up_does_not_overtake_a_change() {
    for change in ["remove", "put"] {
        let (upper, lower) = (Probe::new(), Probe::new());
        let make = || LayeredCache::new(LayerOptions::default()).over(upper.clone()).over(lower.clone());
        make().put("k", bytes("old"), None).await.unwrap();
        upper.lose("k");
        let cache = Arc::new(make());
        let (stopped, go_on) = lower.stop();
        let reader = tokio::spawn({
            let cache = cache.clone();
            async move { text(&*cache, "k").await }
        });
        stopped.await.unwrap();
        let expected = match change {
            "put" => {
                cache.put("k", bytes("new"), None).await.unwrap();
                Some("new")
            }
            _ => {
                cache.remove("k").await.unwrap();
                None
            }
        };
        // Who comes now does not join who began before.
        let later = text(&*cache, "k");
        let (later, ()) = tokio::join!(later, async { go_on.send(()).unwrap() });
        assert_eq!(later.as_deref(), expected);
        reader.await.unwrap();
        for cache in [&*cache, &make()] {
            assert_eq!(text(cache, "k").await.as_deref(), expected, "after {change}");
        }
    }
}

#[tokio::test]
async fn what_was_made_before_a_removal_is_not_kept_after_it() {
    let (upper, lower) = (Probe::new(), Probe::new());
    let make = || LayeredCache::new(LayerOptions::default()).over(upper.clone()).over(lower.clone());
    let cache = make();
    let (begun, has_begun) = oneshot::channel();
    let (end, may_end) = oneshot::channel::<()>();
    let making = cache.get_or_make("k", None, async {
        begun.send(()).unwrap();
        may_end.await.unwrap();
        Ok(bytes("of before"))
    });
    let (made, ()) = tokio::join!(making, async {
        has_begun.await.unwrap();
        cache.remove("k").await.unwrap();
        end.send(()).unwrap();
    });
    assert_eq!(*made.unwrap(), *b"of before", "who asked before is told");
    for cache in [cache, make()] {
        assert_eq!(text(&cache, "k").await, None);
    }
}

/// What a process sees of a layer that others share.
struct Seen(Arc<Probe>, Arc<AtomicU32>);

#[async_trait]
impl Cache for Seen {
    async fn get(&self, key: &str) -> Result<Option<Arc<[u8]>>, Error> {
        self.reach()?.get(key).await
    }

    async fn put(&self, key: &str, value: Arc<[u8]>, ttl_ms: Option<u64>) -> Result<(), Error> {
        self.reach()?.put(key, value, ttl_ms).await
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        self.reach()?.remove(key).await
    }
}

impl Seen {
    fn reach(&self) -> Result<&Probe, Error> {
        match self.1.load(Ordering::SeqCst) {
            0 => Ok(&self.0),
            _ => Err(Error::storage("reach the layer", "the network is down")),
        }
    }
}

#[tokio::test]
async fn what_one_process_could_not_tell_a_layer_no_other_is_told_by_it() {
    let clock = Arc::new(ManualClock::at_ms(1_000));
    let (upper, lower) = (Probe::new(), Probe::new());
    let mut options = LayerOptions::default();
    options.memory_bytes = 0;
    let process = |cut_off: &Arc<AtomicU32>| {
        LayeredCache::new(options.clone())
            .over(Arc::new(Seen(upper.clone(), cut_off.clone())))
            .over(lower.clone())
            .with_clock(clock.clone())
    };
    let (cut_off, well) = (Arc::new(AtomicU32::new(0)), Arc::default());
    let (one, other) = (process(&cut_off), process(&well));
    one.put("changed", bytes("old"), None).await.unwrap();
    one.put("removed", bytes("old"), None).await.unwrap();
    assert_eq!(text(&other, "changed").await.as_deref(), Some("old"));
    assert_eq!(other.stats().layer_hits, [1, 0], "from the layer between");

    cut_off.store(1, Ordering::SeqCst);
    one.put("changed", bytes("new"), None).await.unwrap();
    one.remove("removed").await.unwrap();
    assert!(upper.has("removed"), "the layer missed it");
    clock.advance_ms(u64::try_from(options.look.as_millis()).unwrap());
    let restarted = process(&well);
    for _ in 0..2 {
        for cache in [&other, &restarted, &one] {
            assert_eq!(text(cache, "changed").await.as_deref(), Some("new"));
            assert_eq!(text(cache, "removed").await, None);
        }
    }
    // Who wrote under what was good a moment ago is not read under it later.
    other.put("changed", bytes("newer"), None).await.unwrap();
    cut_off.store(0, Ordering::SeqCst);
    clock.advance_ms(60_000);
    for cache in [&one, &other, &restarted, &process(&well)] {
        assert_eq!(text(cache, "changed").await.as_deref(), Some("newer"));
    }
    assert!(one.stats().layer_hits[0] > 0, "what was away is of use again");
}

#[tokio::test]
async fn a_long_outage_ends_whichever_layer_it_was() {
    for away in [0, 1] {
        let clock = Arc::new(ManualClock::at_ms(1_000));
        let layers = [Probe::new(), Probe::new()];
        let mut options = LayerOptions::default();
        options.memory_bytes = 0;
        let cache = LayeredCache::new(options)
            .over(layers[0].clone())
            .over(layers[1].clone())
            .with_clock(clock.clone());
        for n in 0..11_000 {
            cache.put(&format!("k{n}"), bytes("old"), None).await.unwrap();
        }
        layers[away].broken.store(1, Ordering::SeqCst);
        for n in 0..11_000 {
            cache.put(&format!("k{n}"), bytes("new"), None).await.unwrap();
        }
        layers[away].broken.store(0, Ordering::SeqCst);
        clock.advance_ms(60_000);
        for n in 0..11_000 {
            let found = text(&cache, &format!("k{n}")).await;
            assert_ne!(found.as_deref(), Some("old"), "k{n}");
        }
        cache.put("after", bytes("v"), None).await.unwrap();
        layers[1 - away].lose("after");
        assert_eq!(text(&cache, "after").await.as_deref(), Some("v"), "layer {away} is of use again");
    }
}

#[tokio::test]
async fn callers_at_once_ask_and_make_once() {
    let lower = Probe::new();
    let cache = Arc::new(LayeredCache::new(LayerOptions::default()).over(lower.clone()));
    lower.put("k", [&u64::MAX.to_le_bytes()[..], b"v"].concat().into(), None).await.unwrap();
    let mut callers = tokio::task::JoinSet::new();
    let made = Arc::new(AtomicU32::new(0));
    for _ in 0..50 {
        let (cache, made) = (cache.clone(), made.clone());
        callers.spawn(async move {
            assert_eq!(text(&*cache, "k").await.as_deref(), Some("v"));
            let make = async {
                made.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                Ok(bytes("made"))
            };
            assert_eq!(*cache.get_or_make("other", None, make).await.unwrap(), *b"made");
        });
    }
    callers.join_all().await;
    assert_eq!(lower.gets.load(Ordering::SeqCst), 2, "one for each key");
    assert_eq!(made.load(Ordering::SeqCst), 1);
    let failing = cache.get_or_make("bad", None, async { Err(Error::invalid("thing", "no")) });
    assert_eq!(failing.await.unwrap_err().code(), "CORAL0001");
    assert_eq!(text(&*cache, "bad").await, None, "a failure is not kept");
}

#[tokio::test]
async fn no_layer_serves_a_value_past_its_end() {
    let clock = Arc::new(ManualClock::at_ms(1_000));
    // Its own clock stands still, so it never forgets.
    let lower = Arc::new(MemoryCache::with_clock(100, Arc::new(ManualClock::at_ms(0))));
    let make = || LayeredCache::new(LayerOptions::default()).over(lower.clone()).with_clock(clock.clone());
    let cache = make();
    cache.put("k", bytes("v"), Some(50)).await.unwrap();
    clock.advance_ms(49);
    assert_eq!(text(&cache, "k").await.as_deref(), Some("v"));
    assert_eq!(text(&make(), "k").await.as_deref(), Some("v"));
    clock.advance_ms(1);
    assert_eq!(text(&cache, "k").await, None);
    assert_eq!(text(&make(), "k").await, None);
}

#[tokio::test]
async fn what_a_layer_missed_while_it_was_away_does_not_come_back() {
    let clock = Arc::new(ManualClock::at_ms(1_000));
    let (upper, lower) = (Probe::new(), Probe::new());
    let mut options = LayerOptions::default();
    options.memory_bytes = 0;
    let cache = LayeredCache::new(options).over(upper.clone()).over(lower.clone()).with_clock(clock.clone());
    cache.put("changed", bytes("old"), None).await.unwrap();
    cache.put("removed", bytes("old"), None).await.unwrap();
    upper.broken.store(1, Ordering::SeqCst);
    cache.put("changed", bytes("new"), None).await.unwrap();
    cache.remove("removed").await.unwrap();
    assert_eq!(text(&cache, "changed").await.as_deref(), Some("new"), "by the layer below");
    let asked = upper.gets.load(Ordering::SeqCst);
    assert_eq!(text(&cache, "else").await, None);
    assert_eq!(upper.gets.load(Ordering::SeqCst), asked, "it rests");
    upper.broken.store(0, Ordering::SeqCst);
    clock.advance_ms(60_000);
    assert_eq!(text(&cache, "changed").await.as_deref(), Some("new"));
    assert_eq!(text(&cache, "removed").await, None);
    assert_eq!(text(&cache, "changed").await.as_deref(), Some("new"));
    assert!(cache.stats().layer_failures[0] >= 1);
}

#[tokio::test]
async fn a_layer_that_hangs_is_left_alone() {
    struct Hangs;
    #[async_trait]
    impl Cache for Hangs {
        async fn get(&self, _: &str) -> Result<Option<Arc<[u8]>>, Error> {
            std::future::pending().await
        }
        async fn put(&self, _: &str, _: Arc<[u8]>, _: Option<u64>) -> Result<(), Error> {
            std::future::pending().await
        }
        async fn remove(&self, _: &str) -> Result<(), Error> {
            std::future::pending().await
        }
    }
    tokio::time::pause();
    let cache = LayeredCache::new(LayerOptions::default()).over(Arc::new(Hangs));
    let begun = tokio::time::Instant::now();
    cache.put("k", bytes("v"), None).await.unwrap();
    assert_eq!(text(&cache, "k").await.as_deref(), Some("v"));
    let timeout = LayerOptions::default().timeout;
    assert!((timeout..2 * timeout).contains(&begun.elapsed()), "it waited once: {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_expires_and_removes() {
    let server = tokio::task::spawn_blocking(redis).await.unwrap();
    let url = format!("redis://127.0.0.1:{}/0", server.port);
    let cache = RedisCache::new(&url, "coral:").unwrap();
    let value: Arc<[u8]> = (0..=255).collect::<Vec<u8>>().into();
    cache.put("k", value.clone(), None).await.unwrap();
    assert_eq!(cache.get("k").await.unwrap(), Some(value.clone()));
    assert_eq!(RedisCache::new(&url, "other:").unwrap().get("k").await.unwrap(), None);
    cache.remove("k").await.unwrap();
    assert_eq!(cache.get("k").await.unwrap(), None);
    cache.put("ages", value.clone(), Some(u64::MAX)).await.unwrap();
    assert!(cache.get("ages").await.unwrap().is_some());
    cache.put("none", value.clone(), Some(0)).await.unwrap();
    assert_eq!(cache.get("none").await.unwrap(), None);
    cache.put("brief", value, Some(1)).await.unwrap();
    while cache.get("brief").await.unwrap().is_some() {
        tokio::task::yield_now().await;
    }
    assert_eq!(RedisCache::new("redis://:secret@", "").unwrap_err().code(), "CORAL0001");
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_redis_under_load_costs_time_and_never_truth() {
    let mut server = tokio::task::spawn_blocking(redis).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = SqliteStore::open(dir.path().join("coral.db")).unwrap();
    let url = format!("redis://127.0.0.1:{}/0", server.port);
    let mut options = LayerOptions::default();
    options.memory_bytes = 0;
    options.rest = Duration::from_millis(20);
    // The file's sync may be slow on a busy machine; it must not count as away.
    options.timeout = Duration::from_secs(20);
    let cache = Arc::new(
        LayeredCache::new(options)
            .over(Arc::new(RedisCache::new(&url, "coral:").unwrap()))
            .over(Arc::new(file.cache(10_000))),
    );
    let end = SystemClock.now_ms() + 4_000;
    let rounds = Arc::new(AtomicU64::new(0));
    let mut load = tokio::task::JoinSet::new();
    for n in 0..4 {
        let (cache, rounds) = (cache.clone(), rounds.clone());
        load.spawn(async move {
            let key = format!("k{n}");
            let mut round = 0u64;
            while SystemClock.now_ms() < end || round < 20 {
                round += 1;
                cache.put(&key, bytes(&round.to_string()), None).await.unwrap();
                assert_eq!(text(&*cache, &key).await, Some(round.to_string()));
                if round.is_multiple_of(7) {
                    cache.remove(&key).await.unwrap();
                    assert_eq!(text(&*cache, &key).await, None);
                }
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    for _ in 0..2 {
        let so_far = rounds.load(Ordering::SeqCst);
        while rounds.load(Ordering::SeqCst) < so_far + 8 {
            tokio::task::yield_now().await;
        }
        server = tokio::task::spawn_blocking(move || {
            server.crash();
            server.restart();
            server
        })
        .await
        .unwrap();
    }
    load.join_all().await;
    let stats = cache.stats();
    assert!(stats.layer_failures[0] > 0 && stats.layer_hits[0] > 0, "{stats:?}");
    assert_eq!(stats.layer_failures[1], 0, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_kept_what_is_old_does_not_serve_it_after_a_restart() {
    let mut server = tokio::task::spawn_blocking(lasting_redis).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let url = format!("redis://127.0.0.1:{}/0", server.port);
    // A process: what it knew is gone with it.
    let process = || {
        let file = SqliteStore::open(dir.path().join("coral.db")).unwrap();
        let mut options = LayerOptions::default();
        options.timeout = Duration::from_secs(20);
        LayeredCache::new(options)
            .over(Arc::new(RedisCache::new(&url, "coral:").unwrap()))
            .over(Arc::new(file.cache(1_000)))
    };
    let before = process();
    for key in ["changed", "removed", "same"] {
        before.put(key, bytes("old"), None).await.unwrap();
    }
    drop(before);
    let during = process();
    assert_eq!(text(&during, "changed").await.as_deref(), Some("old"));
    assert_eq!(during.stats().layer_hits, [1, 0], "Redis has it");
    server.crash();
    during.put("changed", bytes("new"), None).await.unwrap();
    during.remove("removed").await.unwrap();
    drop(during);
    server = tokio::task::spawn_blocking(move || {
        server.restart();
        server
    })
    .await
    .unwrap();
    for _ in 0..2 {
        let after = process();
        assert_eq!(text(&after, "changed").await.as_deref(), Some("new"));
        assert_eq!(text(&after, "removed").await, None);
        assert_eq!(text(&after, "same").await.as_deref(), Some("old"));
    }
    drop(server);
}

#[cfg(feature = "redis-tls")]
#[tokio::test(flavor = "multi_thread")]
async fn redis_is_reached_over_tls_by_who_trusts_its_certificate() {
    use crate::servers::{CERTIFICATE, redis_tls};

    let server = tokio::task::spawn_blocking(redis_tls).await.unwrap();
    let url = format!("rediss://localhost:{}/0", server.port);
    let pem = CERTIFICATE.0.as_bytes();
    let cache = RedisCache::trusting(&url, "coral:", pem).unwrap();
    cache.put("k", bytes("v"), None).await.unwrap();
    assert_eq!(text(&cache, "k").await.as_deref(), Some("v"));
    let error = RedisCache::new(&url, "coral:").unwrap().get("k").await.unwrap_err();
    assert!(error.to_string().contains("ertificate"), "the system does not trust it: {error}");
    let plain = format!("redis://localhost:{}/0", server.port);
    assert!(RedisCache::new(&plain, "coral:").unwrap().get("k").await.is_err());
    for (url, pem) in [(&plain, pem), (&url, &b"no certificate"[..])] {
        assert_eq!(RedisCache::trusting(url, "coral:", pem).unwrap_err().code(), "CORAL0001");
    }
}

#[tokio::test]
async fn a_sealed_cache_reads_what_its_ring_sealed_and_nothing_else() {
    let (old, new) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
    let below = Arc::new(MemoryCache::new(100));
    let before = SealedCache::new(below.clone(), &KeyRing::new(old.clone()));
    let after = SealedCache::new(below.clone(), &KeyRing::new(new.clone()).and_older(old));
    let later = SealedCache::new(below.clone(), &KeyRing::new(new));
    before.put("k", bytes("first"), None).await.unwrap();
    assert_eq!(below.get("k").await.unwrap(), None, "not even the key is told");
    assert_eq!(text(&after, "k").await.as_deref(), Some("first"));
    assert_eq!(text(&later, "k").await, None, "it lacks the key");
    after.put("k", bytes("second"), None).await.unwrap();
    assert_eq!(text(&later, "k").await.as_deref(), Some("second"));
    assert_eq!(text(&after, "k").await.as_deref(), Some("second"), "not what the older key sealed");
    before.put("gone", bytes("v"), None).await.unwrap();
    after.remove("gone").await.unwrap();
    assert_eq!(text(&before, "gone").await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_runs_open_from_redis_and_are_right_without_it() {
    let mut server = tokio::task::spawn_blocking(redis).await.unwrap();
    let url = format!("redis://127.0.0.1:{}/0", server.port);
    let cache = || RedisCache::new(&url, "coral:").unwrap();
    let sealed = || SealedCache::new(cache(), &KeyRing::new(MasterKey::from_hex(&"5e".repeat(32)).unwrap()));
    let snapshots = || CachedSnapshots::new(sealed(), Duration::from_secs(3_600));
    let dir = tempfile::tempdir().unwrap();
    let journal = SqliteStore::open(dir.path().join("coral.db")).unwrap().journal();
    let sessions = Sessions::new(journal.clone()).with_snapshots(snapshots());
    sessions.begin("s-1", "reef", json!({"name": "Marmalade"})).await.unwrap();
    for n in 0..40 {
        sessions.prefer("s-1", "volume", json!(n)).await.unwrap();
    }
    let mut records = team_run("reef", "Marmalade", json!({}));
    let template = records[2].clone();
    records.truncate(15);
    records.extend((16..600).map(|seq| coral_core::Record { seq, ..template.clone() }));
    keep(&journal, "run", &records).await;
    let whole = WorkflowState::of(&journal, "run").await.unwrap();
    for _ in 0..2 {
        assert_eq!(WorkflowState::open(&journal, &snapshots(), "run").await.unwrap(), whole);
    }

    // What is kept is where views begin: a forged one shows.
    for run in ["session:s-1", "run"] {
        let kept = snapshots().load(run).await.unwrap().unwrap();
        let mut kept: Value = serde_json::from_slice(&kept).unwrap();
        let place = if run == "run" { &mut kept["state"]["workflow"] } else { &mut kept["state"]["project"] };
        *place = json!("forged");
        snapshots().save(run, 1, 0, serde_json::to_vec(&kept).unwrap()).await.unwrap();
    }
    assert_eq!(sessions.get("s-1").await.unwrap().unwrap().project, "forged");
    let opened = WorkflowState::open(&journal, &snapshots(), "run").await.unwrap().unwrap();
    assert_eq!(opened.workflow, "forged");
    snapshots().remove("session:s-1").await.unwrap();
    let session = sessions.get("s-1").await.unwrap().unwrap();
    assert_eq!((&*session.project, &session.preferences["volume"]), ("reef", &json!(39)));
    // Another run of that name is not taken for the one that was kept.
    let other = SqliteStore::open(dir.path().join("other.db")).unwrap().journal();
    let later =
        |record: &coral_core::Record| coral_core::Record { at_ms: record.at_ms + 1, ..record.clone() };
    keep(&other, "run", &records.iter().map(later).collect::<Vec<_>>()).await;
    let opened = WorkflowState::open(&other, &snapshots(), "run").await.unwrap().unwrap();
    assert_eq!(opened.workflow, "delivery");

    // Nothing of it is to be read on the server.
    cache().put("plain", bytes("Tangerine"), None).await.unwrap();
    save(server.port).await;
    assert!(holds(&server.dir, b"Tangerine"), "the search finds what is not sealed");
    assert!(!holds(&server.dir, b"Marmalade"));

    server.crash();
    assert_eq!(sessions.get("s-1").await.unwrap().unwrap(), session);
    assert_eq!(WorkflowState::open(&journal, &snapshots(), "run").await.unwrap(), whole);
    server.restart();
}

/// Lets a Redis server write all that it holds to its disk.
async fn save(port: u16) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    let mut server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    server.write_all(b"CONFIG SET rdbcompression no\r\nSAVE\r\n").await.unwrap();
    let mut lines = BufReader::new(server).lines();
    for _ in 0..2 {
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("+OK"));
    }
}

//! Timers that go from call to call.

use std::future::pending;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use coral_core::resilience::Timers;
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn each_call_has_its_whole_time_whatever_timer_it_takes() {
    let timers = Timers::default();
    for before in [0, 3, 9, 10, 11] {
        // Leaves a timer that goes off in ten seconds.
        assert_eq!(timers.timer().within(10 * SECOND, sleep(SECOND)).await, Some(()));
        sleep(before * SECOND).await;
        for limit in [5, 10, 60] {
            let began = Instant::now();
            let (mut timer, mut other) = (timers.timer(), timers.timer());
            let (both, _) = tokio::join!(
                timer.within(limit * SECOND, pending::<()>()),
                other.within(limit * SECOND, pending::<()>())
            );
            assert_eq!(both, None);
            assert_eq!(began.elapsed(), limit * SECOND, "of {limit} s, {before} s later");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_timer_serves_the_waits_of_a_call_one_after_the_other() {
    let timers = Timers::default();
    let mut timer = timers.timer();
    let began = Instant::now();
    assert_eq!(timer.within(60 * SECOND, sleep(40 * SECOND)).await, Some(()));
    assert_eq!(timer.within(30 * SECOND, sleep(29 * SECOND)).await, Some(()));
    assert_eq!(timer.within(SECOND, pending::<()>()).await, None);
    timer.until(Instant::now() + SECOND).await;
    assert_eq!(began.elapsed(), 71 * SECOND);
    // A limit that no clock can reach is none.
    assert_eq!(timer.within(Duration::MAX, sleep(SECOND)).await, Some(()));
}

#[test]
fn a_timer_goes_off_in_the_runtime_of_its_call() {
    let timers = Arc::new(Timers::default());
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let call = |limit: Duration| {
        let timers = timers.clone();
        async move { timers.timer().within(limit, sleep(limit / 2)).await }
    };
    let first = runtime();
    assert_eq!(first.block_on(call(10 * SECOND)), Some(()));
    drop(first);
    let second = runtime();
    assert_eq!(second.block_on(call(10 * SECOND)), Some(()));

    // A call that is given up once its runtime is gone takes nothing with it.
    let mut waits = Box::pin({
        let timers = timers.clone();
        async move { timers.timer().within(SECOND, pending::<()>()).await }
    });
    second.block_on(async {
        assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    });
    drop(second);
    drop(waits);
}

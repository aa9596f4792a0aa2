//! Polling a future again at once if it woke itself.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicU8,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// Times that a future is polled again before other tasks have their turn.
const TIMES: usize = 8;

/// A future that is polled again at once if it was woken while it was polled.
///
/// hyper's connections wake themselves twice for each body that is read by the service: when it is asked for, and when it has
/// come. Tokio takes such a task for work to share, and wakes another thread to take it away, which costs more than the
/// request's own work.
pub(super) struct Repoll<F> {
    future: F,
    state: Arc<State>,
    waker: Waker,
}

struct State {
    phase: AtomicU8,
    outer: AtomicWaker,
}

/// Nobody polls it: who wakes it wakes the task.
const IDLE: u8 = 0;
/// It is being polled.
const POLLED: u8 = 1;
/// It is being polled, and was woken meanwhile.
const WOKEN: u8 = 2;

impl<F> Repoll<F> {
    pub(super) fn new(future: F) -> Self {
        let state = Arc::new(State { phase: AtomicU8::new(IDLE), outer: AtomicWaker::new() });
        Self { future, waker: Waker::from(state.clone()), state }
    }
}

impl Wake for State {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Written again where it is there already, so that whoever polls next sees what this waker's owner did before.
        let next = |phase| (phase != IDLE).then_some(WOKEN);
        if self.phase.fetch_update(AcqRel, Acquire, next) == Err(IDLE) {
            self.outer.wake();
        }
    }
}

impl<F: Future + Unpin> Future for Repoll<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, state, waker } = &mut *self;
        state.outer.register(cx.waker());
        for _ in 0..TIMES {
            state.phase.store(POLLED, Release);
            if let Poll::Ready(done) = Pin::new(&mut *future).poll(&mut Context::from_waker(waker)) {
                return Poll::Ready(done);
            }
            if state.phase.swap(IDLE, AcqRel) == POLLED {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        time::Duration,
    };

    use tokio::time::timeout;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    /// What comes of a future that wakes itself in each of its first `wakes` polls and is ready in the poll after `waits`:
    /// after one poll from outside, whether it is ready, how often it was polled, and how often the task was woken.
    fn poll_once(wakes: usize, waits: usize) -> (bool, usize, usize) {
        let (count, mut polls) = (Arc::new(Count::default()), 0);
        let mut future = Repoll::new(poll_fn(|cx| {
            polls += 1;
            if polls <= wakes {
                cx.waker().wake_by_ref();
                cx.waker().wake_by_ref();
            }
            if polls > waits { Poll::Ready(()) } else { Poll::Pending }
        }));
        let waker = Waker::from(count.clone());
        let ready = Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_ready();
        drop(future);
        (ready, polls, count.0.load(SeqCst))
    }

    #[test]
    fn what_wakes_itself_is_polled_again_and_no_task_is_woken() {
        assert_eq!(poll_once(0, 0), (true, 1, 0));
        assert_eq!(poll_once(2, 2), (true, 3, 0));
        assert_eq!(poll_once(2, 9), (false, 3, 0));
        // Others have their turn in the end.
        assert_eq!(poll_once(99, 99), (false, TIMES, 1));
    }

    /// Another thread wakes it at any moment, during a poll included, and no wake-up is lost.
    #[test]
    fn what_others_bring_meanwhile_is_seen() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        for _ in 0..2_000 {
            let (brought, taken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicWaker::new()));
            let (sender, receiver) = (brought.clone(), taken.clone());
            let bringing = std::thread::spawn(move || {
                for _ in 0..4 {
                    sender.fetch_add(1, SeqCst);
                    receiver.wake();
                }
            });
            let all = poll_fn(|cx| {
                taken.register(cx.waker());
                if brought.load(SeqCst) == 4 { Poll::Ready(()) } else { Poll::Pending }
            });
            let done = runtime.block_on(async { timeout(Duration::from_secs(20), Repoll::new(all)).await });
            done.expect("no wake-up is lost");
            bringing.join().unwrap();
        }
    }

    #[test]
    fn what_is_woken_from_outside_wakes_its_task() {
        let (count, mut held) = (Arc::new(Count::default()), None);
        let waker = Waker::from(count.clone());
        let mut future = Repoll::new(poll_fn(|cx| {
            held = Some(cx.waker().clone());
            Poll::<()>::Pending
        }));
        assert!(Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(future);
        held.unwrap().wake();
        assert_eq!(count.0.load(SeqCst), 1);
    }
}

//! What a server asked and was not answered yet: no more than a bounded number of things at once.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rmcp::model::RequestId;
use tokio::sync::Notify;

/// How many. Each is work and memory on this side, so what is above it waits in the server's pipe or
/// stream.
const MAX: usize = 256;

#[derive(Default)]
pub(crate) struct Asked {
    open: Mutex<HashSet<RequestId>>,
    answered: Notify,
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, HashSet<RequestId>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the server may ask one thing more.
    pub(crate) async fn room(&self) {
        loop {
            let answered = self.answered.notified();
            if self.lock().len() < MAX {
                return;
            }
            answered.await;
        }
    }

    /// Notes a question; `false` for one that is open under this id already, and to be passed over.
    pub(crate) fn begin(&self, id: RequestId) -> bool {
        self.lock().insert(id)
    }

    /// A question was answered, or withdrawn.
    pub(crate) fn end(&self, id: &RequestId) {
        self.lock().remove(id);
        self.answered.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_asks_so_much_at_once_and_waits_with_the_rest() {
        let asked = Asked::default();
        for id in 0..256 {
            asked.room().await;
            assert!(asked.begin(RequestId::Number(id)));
        }
        assert!(!asked.begin(RequestId::Number(7)), "it is open");
        let full = tokio::time::timeout(Duration::from_secs(60), asked.room()).await;
        assert!(full.is_err());
        let answer = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            asked.end(&RequestId::Number(7));
        };
        let waited =
            tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(asked.room(), answer) });
        assert!(waited.await.is_ok());
    }
}

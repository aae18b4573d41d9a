//! graph-flow: each step a task that leaves the context as it is; the state is a value in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use graph_flow::fanout::FanOutTask;
use graph_flow::{
    Context, ExecutionStatus, FlowRunner, GraphBuilder, InMemorySessionStorage, NextAction, Session,
    SessionStorage, Task, TaskResult,
};

use crate::{Order, Outcome};

struct Step {
    name: String,
    next: NextAction,
}

#[async_trait]
impl Task for Step {
    fn id(&self) -> &str {
        &self.name
    }

    async fn run(&self, _context: Context) -> graph_flow::Result<TaskResult> {
        Ok(TaskResult::new(None, self.next.clone()))
    }
}

pub(crate) struct Workflow {
    runner: FlowRunner,
    sessions: Arc<InMemorySessionStorage>,
    first: String,
    state: String,
    runs: AtomicU64,
}

impl Workflow {
    pub(crate) fn new(order: &Order) -> Outcome<Self> {
        let mut graph = GraphBuilder::new("bench");
        let step = |name: String, next| Arc::new(Step { name, next });
        let first = if order.chain > 0 {
            for n in 0..order.chain {
                let last = n + 1 == order.chain;
                let next = if last { NextAction::End } else { NextAction::ContinueAndExecute };
                graph = graph.add_task(step(format!("step-{n}"), next));
                if n > 0 {
                    graph = graph.add_edge(format!("step-{}", n - 1), format!("step-{n}"));
                }
            }
            "step-0"
        } else {
            let branches = (0..order.fan_out)
                .map(|n| -> Arc<dyn Task> { step(format!("branch-{n}"), NextAction::End) })
                .collect();
            let fan_out =
                FanOutTask::new("fan-out", branches).with_next_action(NextAction::ContinueAndExecute);
            graph = graph
                .add_task(fan_out)
                .add_task(step("join".to_owned(), NextAction::End))
                .add_edge("fan-out", "join");
            "fan-out"
        };
        let sessions = Arc::new(InMemorySessionStorage::new());
        Ok(Workflow {
            runner: FlowRunner::new(Arc::new(graph.build()?), sessions.clone()),
            sessions,
            first: first.to_owned(),
            state: "x".repeat(order.state),
            runs: AtomicU64::new(0),
        })
    }

    pub(crate) async fn run(&self, times: u64) -> Outcome {
        for _ in 0..times {
            let id = format!("run-{}", self.runs.fetch_add(1, Ordering::Relaxed));
            let session = Session::new_from_task(id.clone(), &self.first);
            session.context.set("state", &self.state)?;
            self.sessions.save(session).await?;
            let result = self.runner.run(&id).await?;
            if !matches!(result.status, ExecutionStatus::Completed) {
                return Err(format!("a run ended as {:?}", result.status).into());
            }
            self.sessions.delete(&id).await?;
        }
        Ok(())
    }
}

//! adk-graph: each step a node that changes nothing; the state is one channel.

use std::sync::atomic::{AtomicU64, Ordering};

use adk_graph::graph::CompiledGraph;
use adk_graph::node::{ExecutionConfig, NodeOutput};
use adk_graph::{END, MemoryCheckpointer, START, State, StateGraph};
use serde_json::Value;

use crate::{Order, Outcome};

pub(crate) struct Workflow {
    graph: CompiledGraph,
    input: State,
    limit: usize,
    checkpointed: bool,
    runs: AtomicU64,
}

impl Workflow {
    pub(crate) fn new(order: &Order, checkpointed: bool) -> Outcome<Self> {
        let mut graph = StateGraph::with_channels(&["state"]);
        let node = |graph: StateGraph, name: &str| {
            graph.add_node_fn(name, |_cx| async move { Ok(NodeOutput::new()) })
        };
        if order.chain > 0 {
            let mut before = START.to_owned();
            for n in 0..order.chain {
                let name = format!("step-{n}");
                graph = node(graph, &name).add_edge(&before, &name);
                before = name;
            }
            graph = graph.add_edge(&before, END);
        } else {
            graph = node(graph, "join");
            for n in 0..order.fan_out {
                let name = format!("branch-{n}");
                graph = node(graph, &name).add_edge(START, &name).add_edge(&name, "join");
            }
            graph = graph.add_edge("join", END);
        }
        let limit = order.chain + 10;
        let mut graph = graph.compile()?.with_recursion_limit(limit);
        if checkpointed {
            graph = graph.with_checkpointer(MemoryCheckpointer::new());
        }
        let input = State::from([("state".to_owned(), Value::String("x".repeat(order.state)))]);
        Ok(Workflow { graph, input, limit, checkpointed, runs: AtomicU64::new(0) })
    }

    pub(crate) async fn run(&self, times: u64) -> Outcome {
        for _ in 0..times {
            let thread = format!("run-{}", self.runs.fetch_add(1, Ordering::Relaxed));
            let config = ExecutionConfig::new(&thread).with_recursion_limit(self.limit);
            let output = self.graph.invoke(self.input.clone(), config).await?;
            if output.get("state") != self.input.get("state") {
                return Err("a run lost its state".into());
            }
            if let (true, Some(checkpoints)) = (self.checkpointed, self.graph.checkpointer()) {
                checkpoints.delete(&thread).await?;
            }
        }
        Ok(())
    }
}

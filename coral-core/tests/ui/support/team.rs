//! A small team for the cases: an architect designs, two developers build, an engineer tests.
#![allow(dead_code, unused_imports)]

pub use coral_core::{
    Agent, AgentContext, AgentError, AgentSpec, All, ChatRequest, FirstOk, Flow, Handle, Handoff,
    HandoffContext, MaybeHandle, Quorum, Runner, Settle, Workflow,
};
pub use schemars::JsonSchema;
pub use serde::{Deserialize, Serialize};

macro_rules! data {
    ($($name:ident)+) => {$(
        #[derive(Clone, Serialize, Deserialize, JsonSchema)]
        pub struct $name(pub String);
    )+};
}

data! { Idea Design Api Ui QaTask Verdict }

impl Handoff<QaTask> for (Api, Ui) {
    fn hand_off(self, _cx: &HandoffContext) -> Result<QaTask, AgentError> {
        Ok(QaTask(format!("{} {}", self.0.0, self.1.0)))
    }
}

macro_rules! agents {
    ($($name:ident takes $input:ident gives $output:ident)+) => {$(
        pub struct $name(pub AgentSpec);

        #[async_trait::async_trait]
        impl Agent for $name {
            type Input = $input;
            type Output = $output;

            fn spec(&self) -> &AgentSpec {
                &self.0
            }

            async fn run(&self, input: $input, _cx: &mut AgentContext) -> Result<$output, AgentError> {
                Ok($output(input.0))
            }
        }
    )+};
}

mod agents {
    use super::*;

    agents! {
        Architect takes Idea gives Design
        Backend takes Design gives Api
        Frontend takes Design gives Ui
        Qa takes QaTask gives Verdict
    }
}

pub fn architect() -> agents::Architect {
    agents::Architect(AgentSpec::new("architect", "Architect"))
}

pub fn backend() -> agents::Backend {
    agents::Backend(AgentSpec::new("backend", "Backend developer"))
}

pub fn frontend() -> agents::Frontend {
    agents::Frontend(AgentSpec::new("frontend", "Frontend developer"))
}

pub fn qa() -> agents::Qa {
    agents::Qa(AgentSpec::new("qa", "QA engineer"))
}

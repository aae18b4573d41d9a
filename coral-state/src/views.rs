//! State as folds over journals: of a workflow, an agent, a project and a session.
//!
//! Nothing here is written directly. A view is what its records say, so it can be thrown away and
//! folded again, and two processes that read the same records see the same state.

mod agent;
mod agents;
mod project;
mod session;
mod workflow;

use coral_core::{Spent, Usd};
use serde::{Deserialize, Serialize};

pub use self::agent::{AgentFailure, AgentOutput, AgentState};
pub(crate) use self::project::ProjectChange;
pub use self::project::{ProjectState, ProjectStatus};
pub(crate) use self::session::SessionChange;
pub use self::session::SessionState;
pub use self::workflow::{Progress, StepStatus, StepView, Worked, WorkflowState};

/// What work used and cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spending {
    /// Money, where the price was known.
    pub cost: Usd,
    /// Tokens of input.
    pub input_tokens: u64,
    /// Tokens of output.
    pub output_tokens: u64,
    /// Effects that used a model.
    pub calls: u64,
}

impl Spending {
    fn add(&mut self, spent: &Spent) {
        self.cost += spent.cost.unwrap_or_default();
        self.input_tokens = self.input_tokens.saturating_add(spent.usage.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(spent.usage.output_tokens);
        self.calls += u64::from(spent.model.is_some());
    }
}

impl std::ops::AddAssign for Spending {
    fn add_assign(&mut self, other: Spending) {
        self.cost += other.cost;
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
        self.calls = self.calls.saturating_add(other.calls);
    }
}

//! Handing off to an agent that is chosen as the work goes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Handoff, HandoffContext};
use crate::error::{AgentError, Error};
use crate::payload::{Data, Payload};
use crate::program::Feed;

/// What an agent of a [`route`](crate::Flow::route) gives: the work so far, and who goes on with it.
///
/// A step behind the route takes it as it is, or as the `T` that it carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hop<T> {
    /// The id of the agent that goes on; `None` if the work is done.
    pub next_agent: Option<String>,
    /// The work so far.
    pub value: T,
}

impl<T> Hop<T> {
    /// Hands `value` to the agent of this id, one of the route's own.
    pub fn to(agent: impl Into<String>, value: T) -> Self {
        Hop { next_agent: Some(agent.into()), value }
    }

    /// Ends the route with `value`.
    pub fn done(value: T) -> Self {
        Hop { next_agent: None, value }
    }
}

impl<T: Data> Hop<T> {
    /// What goes into a route, as the agents within take it: a hop.
    pub(crate) fn begin(input: &Payload) -> Result<Payload, Error> {
        input.get::<T>().map(|value| Payload::new(Hop::done(value)))
    }

    /// What an agent within a route takes: what the hop before carries.
    pub(crate) fn feed() -> Feed {
        Feed::plain(|outputs, _cx| {
            let hop = outputs.first().and_then(Option::as_ref).map(Payload::get::<Hop<T>>);
            let hop = hop.ok_or_else(|| Error::invalid("input", "the hop before gave no output"))??;
            Ok(Payload::new(hop.value))
        })
    }
}

#[diagnostic::do_not_recommend]
impl<T> Handoff<T> for Hop<T> {
    fn hand_off(self, _cx: &HandoffContext) -> Result<T, AgentError> {
        Ok(self.value)
    }
}

//! What agents ask for is what tools do.

use std::collections::BTreeSet;

use coral_agents::Registry;
use coral_core::OPERATIONS;
use coral_mcp::Profile;

/// The profiles of servers that know a tool of this name.
fn profiles_with(tool: &str) -> Vec<&'static str> {
    let knows = |name: &&str| Profile::built_in(name).unwrap().operation(tool).is_some();
    Profile::built_in_names().filter(knows).collect()
}

#[test]
fn every_operation_is_done_by_a_tool_that_a_profile_knows() {
    for (operation, tools) in OPERATIONS {
        assert!(!tools.is_empty(), "`{operation}` is done by no tool");
        for tool in tools {
            assert!(!profiles_with(tool).is_empty(), "`{operation}`: no profile knows the tool `{tool}`");
        }
    }
    assert_eq!(profiles_with("no_such_tool"), [""; 0]);
}

#[test]
fn every_operation_is_needed_by_an_agent() {
    let registry = Registry::builtin();
    let needed: BTreeSet<&str> =
        registry.agents().flat_map(|spec| spec.operations.iter().map(String::as_str)).collect();
    let known: BTreeSet<&str> = OPERATIONS.iter().map(|(name, _)| *name).collect();
    let unknown: Vec<&&str> = needed.difference(&known).collect();
    assert_eq!(unknown, [&""; 0]);
    // Whoever creates repositories is no built-in agent, but may be one of a house.
    let unused: Vec<&&str> = known.difference(&needed).collect();
    assert_eq!(unused, [&"create_repository"]);
}

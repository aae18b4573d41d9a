//! The operations that agents need, and the tools that do them.

use crate::tool::ToolDef;

/// The operations that agent definitions may name, each with the tools that do it, as servers call them. A tool of the
/// operation's own name does it in any case.
///
/// Where it takes a program to be run, the tool is one that runs programs.
pub const OPERATIONS: [(&str, &[&str]); 23] = [
    ("backup_restore", &["run"]),
    ("build_image", &["build_image", "run"]),
    ("commit_changes", &["git_commit", "push_files", "create_or_update_file", "run"]),
    ("compose_up_down", &["run"]),
    ("container_logs", &["fetch_container_logs", "run"]),
    ("create_pull_request", &["create_pull_request"]),
    ("create_repository", &["create_repository"]),
    ("create_tables", &["create_table", "query", "execute_sql"]),
    ("edit_file", &["edit_file"]),
    ("execute_query", &["query", "execute_sql", "read_query"]),
    ("fetch_url", &["fetch", "web_url_read", "tavily_extract", "web_fetch_exa"]),
    ("list_directory", &["list_directory", "directory_tree"]),
    ("manage_issues", &["create_issue", "issue_write", "add_issue_comment"]),
    ("performance_monitoring", &["explain_query", "analyze_db_health", "get_top_queries", "run"]),
    ("push_pull_images", &["push_image", "pull_image", "run"]),
    ("read_file", &["read_file", "read_text_file", "read_multiple_files"]),
    ("run_code", &["run_code", "run"]),
    ("run_container", &["run_container", "start_container", "run"]),
    ("run_migrations", &["query", "execute_sql", "run"]),
    ("search_files", &["search_files"]),
    ("search_web", &["searxng_web_search", "brave_web_search", "tavily_search", "web_search_exa"]),
    ("trigger_workflows", &["actions_run_trigger"]),
    ("write_file", &["write_file"]),
];

/// Those of `needed` that no tool does.
pub(super) fn missing<'a>(needed: &'a [String], tools: &[ToolDef]) -> Vec<&'a str> {
    let there: Vec<&str> = tools.iter().map(|tool| bare(&tool.name)).collect();
    let done = |operation: &str| {
        let known = OPERATIONS.iter().find(|(name, _)| *name == operation);
        let by = known.map_or(&[][..], |(_, tools)| tools);
        there.iter().any(|tool| *tool == operation || by.contains(tool))
    };
    needed.iter().map(String::as_str).filter(|operation| !done(operation)).collect()
}

/// The name of a tool without that of its server.
fn bare(name: &str) -> &str {
    name.split_once("__").map_or(name, |(_, tool)| tool)
}

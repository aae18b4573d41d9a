//! The built-in server of files and directories.

mod disk;
mod tools;

use std::path::Path;
use std::sync::Arc;

use coral_core::Error;
use rmcp::ErrorData;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::{RoleServer, ServerHandler};

use self::disk::Disk;

/// The name of the built-in file system server.
pub(crate) const NAME: &str = "filesystem";

/// An MCP server for one directory.
///
/// It works through directory handles and follows no symbolic link, so that nothing outside of
/// its directory can be reached, whatever is swapped in between; files with several hard links
/// are refused, since one of the names may lie outside.
#[derive(Clone)]
pub(crate) struct Filesystem {
    disk: Arc<Disk>,
}

impl Filesystem {
    /// A server for the directory `root`, which must exist.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        Ok(Filesystem { disk: Arc::new(Disk::open(root)?) })
    }
}

impl ServerHandler for Filesystem {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("coral-filesystem", env!("CARGO_PKG_VERSION")))
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools::all()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let call = tools::Call::parse(&request.name, request.arguments.unwrap_or_default())
            .map_err(|problem| ErrorData::invalid_params(problem, None))?;
        let disk = Arc::clone(&self.disk);
        // A write that began is finished even if the caller goes away: no half-made state.
        let done = tokio::task::spawn_blocking(move || call.run(&disk))
            .await
            .map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
        Ok(match done {
            Ok(text) => CallToolResult::success(vec![ContentBlock::text(text)]),
            Err(problem) => CallToolResult::error(vec![ContentBlock::text(problem)]),
        }
        .into())
    }
}

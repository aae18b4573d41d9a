//! Servers as people have them configured: `mcpServers` JSON, read as it stands.

mod oauth;
mod rules;
mod variables;

use std::collections::BTreeMap;
use std::fmt;

use coral_core::{Error, ErrorKind};
use serde::Deserialize;
use serde_json::Value;

pub use self::oauth::OAuth;
pub(crate) use self::rules::{ConnectionRules, Generation, Per};
pub use self::variables::Variables;

/// MCP servers by name, from the `mcpServers` JSON of `.mcp.json` and its like.
///
/// `${NAME}` and `${NAME:-default}` stand for [`Variables`], in commands, arguments, environment,
/// URLs and headers. Keys that are not known are passed over with a warning.
///
/// ```
/// use coral_mcp::{Servers, Variables};
///
/// let servers = Servers::from_json(
///     r#"{"mcpServers": {"github": {
///         "command": "mcp-server-github",
///         "env": {"GITHUB_PERSONAL_ACCESS_TOKEN": "${GITHUB_TOKEN}"}
///     }}}"#,
///     ".mcp.json",
///     &Variables::new().with("GITHUB_TOKEN", "s3cret-s3cret"),
/// )?;
/// assert_eq!(servers.names().collect::<Vec<_>>(), ["github"]);
/// assert!(!format!("{servers:?}").contains("s3cret"));
/// # Ok::<(), coral_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Servers(pub(crate) BTreeMap<String, ServerSpec>);

/// How one server is reached.
#[derive(Clone)]
pub(crate) struct ServerSpec {
    pub(crate) transport: TransportSpec,
    /// Values that must not be shown.
    pub(crate) secrets: Vec<String>,
}

#[derive(Clone)]
pub(crate) enum TransportSpec {
    Stdio { command: String, args: Vec<String>, env: BTreeMap<String, String>, cwd: Option<String> },
    Http(HttpSpec),
}

/// A server behind an address.
#[derive(Clone)]
pub(crate) struct HttpSpec {
    pub(crate) url: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) oauth: Option<OAuth>,
}

impl fmt::Debug for ServerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("ServerSpec");
        match &self.transport {
            TransportSpec::Stdio { command, args, env, .. } => {
                shown.field("command", command).field("args", &args.len()).field("env", &env.keys())
            }
            // The query of an address may hold a key.
            TransportSpec::Http(http) => shown
                .field("url", &http.url.split(['?', '#', '@']).next())
                .field("headers", &http.headers.keys())
                .field("oauth", &http.oauth),
        };
        shown.finish()
    }
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: Option<String>,
    command: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    cwd: Option<String>,
    #[serde(alias = "serverUrl")]
    url: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    oauth: Option<OAuthEntry>,
    #[serde(default)]
    disabled: bool,
    #[serde(flatten)]
    other: BTreeMap<String, Value>,
}

/// OAuth as it is configured beside an address.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OAuthEntry {
    client_id: Option<String>,
    client_secret: Option<String>,
    #[serde(default)]
    scopes: Vec<String>,
    client_metadata_url: Option<String>,
    /// `client_credentials` acts for the program itself.
    grant_type: Option<String>,
}

impl Servers {
    /// Reads the JSON of `mcpServers` (or `servers`); `name` stands in messages.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) with the line for what is not JSON of this shape;
    /// [`Problems`](ErrorKind::Problems) with everything else that is wrong.
    pub fn from_json(text: &str, name: &str, variables: &Variables) -> Result<Self, Error> {
        let shape = |error: serde_json::Error| {
            let place = if error.line() > 0 { format!("{name}:{}", error.line()) } else { name.to_owned() };
            let problem = error.to_string();
            let problem = problem.split(" at line ").next().unwrap_or_default().to_owned();
            Error::invalid("servers file", problem).at(place)
        };
        #[derive(Deserialize)]
        struct File {
            #[serde(rename = "mcpServers", alias = "servers")]
            servers: BTreeMap<String, Entry>,
        }
        let file: File = serde_json::from_str(text).map_err(shape)?;
        let mut servers = BTreeMap::new();
        let mut problems = Vec::new();
        for (id, entry) in file.servers {
            if entry.disabled {
                continue;
            }
            let known = ["alwaysAllow", "autoApprove", "timeout", "description"];
            for key in entry.other.keys().filter(|key| !known.contains(&key.as_str())) {
                tracing::warn!(file = name, server = %id, key = %key, "an unknown key is passed over");
            }
            if let Err(problem) = crate::server::check_name(&id) {
                problems.push(format!("{name}: {problem}"));
            }
            match entry.read(variables) {
                Ok(spec) => {
                    servers.insert(id, spec);
                }
                Err(problem) => problems.push(format!("{name}: server `{id}`: {problem}")),
            }
        }
        if problems.is_empty() {
            return Ok(Servers(servers));
        }
        Err(Error::new(ErrorKind::Problems { what: "servers file".to_owned(), problems }))
    }

    /// Adds a server that is started as `command` with `args` in the project's root, with an
    /// environment of nothing but `PATH`.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a name that can't be a server's.
    pub fn stdio<S: Into<String>>(
        mut self,
        name: impl Into<String>,
        command: impl Into<String>,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Self, Error> {
        let name = name.into();
        crate::server::check_name(&name).map_err(|problem| Error::invalid("servers", problem))?;
        let transport = TransportSpec::Stdio {
            command: command.into(),
            args: args.into_iter().map(Into::into).collect(),
            env: BTreeMap::new(),
            cwd: None,
        };
        self.0.insert(name, ServerSpec { transport, secrets: Vec::new() });
        Ok(self)
    }

    /// Adds a server behind an address: streamable HTTP. Tokens are had by `oauth`, where the defaults do
    /// not do.
    ///
    /// # Errors
    /// [`Invalid`](ErrorKind::Invalid) for a name that can't be a server's.
    pub fn http(
        mut self,
        name: impl Into<String>,
        url: impl Into<String>,
        oauth: Option<OAuth>,
    ) -> Result<Self, Error> {
        let name = name.into();
        crate::server::check_name(&name).map_err(|problem| Error::invalid("servers", problem))?;
        let transport = TransportSpec::Http(HttpSpec { url: url.into(), headers: BTreeMap::new(), oauth });
        self.0.insert(name, ServerSpec { transport, secrets: Vec::new() });
        Ok(self)
    }

    /// The servers' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl Entry {
    fn read(self, variables: &Variables) -> Result<ServerSpec, String> {
        let by_address = match self.kind.as_deref() {
            // Files of some hosts leave the kind out where there is an address.
            None => self.url.is_some() && self.command.is_none(),
            Some("stdio") => false,
            Some("http" | "streamable-http" | "streamableHttp" | "streamable_http") => true,
            Some("sse") => {
                return Err(
                    "the transport `sse` was withdrawn from the protocol; use the server's streamable \
                            HTTP address"
                        .to_owned(),
                );
            }
            Some(kind) => return Err(format!("the transport `{kind}` is not supported")),
        };
        let mut secrets = Vec::new();
        let transport = if by_address {
            TransportSpec::Http(self.address(variables, &mut secrets)?)
        } else {
            self.process(variables, &mut secrets)?
        };
        // Short values would blot out words that merely look like them.
        secrets.retain(|secret| secret.len() >= 6);
        Ok(ServerSpec { transport, secrets })
    }

    fn process(self, variables: &Variables, secrets: &mut Vec<String>) -> Result<TransportSpec, String> {
        let command = self.command.filter(|c| !c.is_empty()).ok_or("it has no `command`")?;
        let mut expand = |text: &str| variables.expand(text, secrets);
        let command = expand(&command)?;
        let args = self.args.iter().map(|arg| expand(arg)).collect::<Result<_, _>>()?;
        let cwd = self.cwd.as_deref().map(&mut expand).transpose()?;
        let mut env = BTreeMap::new();
        for (key, value) in &self.env {
            if key.is_empty() || key.contains(['=', '\0']) {
                return Err(format!("`{key}` is not a variable's name"));
            }
            env.insert(key.clone(), expand(value)?);
        }
        secrets.extend(env.iter().filter(|(key, _)| holds_secret(key)).map(|(_, value)| value.clone()));
        Ok(TransportSpec::Stdio { command, args, env, cwd })
    }

    fn address(self, variables: &Variables, secrets: &mut Vec<String>) -> Result<HttpSpec, String> {
        let url = self.url.filter(|url| !url.is_empty()).ok_or("it has no `url`")?;
        let mut expand = |text: &str| variables.expand(text, secrets);
        let url = expand(&url)?;
        let mut headers = BTreeMap::new();
        for (key, value) in &self.headers {
            headers.insert(key.clone(), expand(value)?);
        }
        let oauth = match self.oauth {
            None => None,
            Some(entry) => {
                let mut oauth = OAuth::new().scopes(entry.scopes);
                let secret = entry.client_secret.as_deref().map(&mut expand).transpose()?;
                oauth.client_id = entry.client_id.as_deref().map(&mut expand).transpose()?;
                oauth.client_metadata_url = entry.client_metadata_url;
                secrets.extend(secret.clone());
                oauth.client_secret = secret.map(Into::into);
                match entry.grant_type.as_deref() {
                    None | Some("authorization_code") => {}
                    Some("client_credentials")
                        if oauth.client_id.is_some() && oauth.client_secret.is_some() =>
                    {
                        oauth = oauth.for_itself();
                    }
                    Some("client_credentials") => {
                        return Err("`client_credentials` needs `clientId` and `clientSecret`".to_owned());
                    }
                    Some(other) => return Err(format!("the grant `{other}` is not supported")),
                }
                Some(oauth)
            }
        };
        for (key, value) in headers.iter().filter(|(key, _)| holds_secret(key)) {
            let bare = value.split_once(' ').filter(|_| key.eq_ignore_ascii_case("authorization"));
            secrets.push(bare.map_or_else(|| value.clone(), |(_, token)| token.to_owned()));
        }
        Ok(HttpSpec { url, headers, oauth })
    }
}

/// Whether a variable or a header holds a secret, by its name.
fn holds_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["TOKEN", "KEY", "SECRET", "PASSWORD", "CREDENTIAL", "AUTHORIZATION", "COOKIE"]
        .iter()
        .any(|word| name.contains(word))
}

#!/bin/sh
# Installs the public MCP servers that coral-mcp is tested against, in pinned versions, under
# target/mcp-servers. Needs Node 20 or later with npm, and Python 3.11 or later with venv.
# Does nothing when they are there already.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
dest="${CARGO_TARGET_DIR:-$root/target}/mcp-servers"
mark="$dest/installed"
want=$(cksum < "$0")

if [ -f "$mark" ] && [ "$(cat "$mark")" = "$want" ]; then
    exit 0
fi
rm -f "$mark"
mkdir -p "$dest/node"

npm install --prefix "$dest/node" --ignore-scripts --no-audit --no-fund --save-exact --loglevel=error \
    @modelcontextprotocol/server-filesystem@2026.8.31 \
    @modelcontextprotocol/server-everything@2026.8.31 \
    @modelcontextprotocol/server-memory@2026.8.31

# Two environments: the SQLite server does not work with the second generation of the SDK.
python3 -m venv "$dest/python"
"$dest/python/bin/pip" install --quiet --disable-pip-version-check \
    mcp-server-git==2026.10.19 mcp-server-fetch==2026.10.24 mcp-server-time==2026.10.19
python3 -m venv "$dest/python-sqlite"
"$dest/python-sqlite/bin/pip" install --quiet --disable-pip-version-check \
    mcp-server-sqlite==2025.4.25 'mcp<2'

printf '%s\n' "$want" > "$mark"

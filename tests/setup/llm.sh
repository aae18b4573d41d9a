#!/bin/sh
# Installs the model servers that coral-llm's peer tests talk to, into target/setup/llm:
# aimock (npm), which speaks every provider's wire format, and llama-server (PyPI's xllamacpp).
# It may be run any number of times, also at once; what is there already is not fetched again.
set -eu

AIMOCK=1.43.0
XLLAMACPP=2026.10.11549

root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
into=${CARGO_TARGET_DIR:-$root/target}/setup/llm
mkdir -p "$into"

exec 9>"$into/lock"
flock 9

if [ "$(cat "$into/aimock.version" 2>/dev/null || true)" != "$AIMOCK" ]; then
    rm -rf "$into/aimock"
    mkdir -p "$into/aimock"
    npm install --prefix "$into/aimock" --no-audit --no-fund --loglevel=error "@copilotkit/aimock@$AIMOCK" >&2
    echo "$AIMOCK" >"$into/aimock.version"
fi

if [ "$(cat "$into/xllamacpp.version" 2>/dev/null || true)" != "$XLLAMACPP" ]; then
    rm -rf "$into/xllamacpp"
    python3 -m venv "$into/xllamacpp"
    "$into/xllamacpp/bin/pip" install --quiet --disable-pip-version-check "xllamacpp==$XLLAMACPP" >&2
    echo "$XLLAMACPP" >"$into/xllamacpp.version"
fi

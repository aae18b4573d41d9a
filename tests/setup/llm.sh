#!/bin/sh
# Installs the model servers that coral-llm's peer tests talk to, into target/setup/llm:
# aimock (npm), which speaks every provider's wire format, llama-server (PyPI's xllamacpp), and a receiver of
# OpenTelemetry's protocol (PyPI's oteltap).
# It may be run any number of times, also at once; what is there already is not fetched again.
set -eu

AIMOCK=1.43.0
XLLAMACPP=2026.10.11549
OTELTAP=1.0.0

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

# A Python package in an environment of its own.
python_package() {
    if [ "$(cat "$into/$1.version" 2>/dev/null || true)" != "$2" ]; then
        rm -rf "$into/$1"
        python3 -m venv "$into/$1"
        "$into/$1/bin/pip" install --quiet --disable-pip-version-check "$1==$2" >&2
        echo "$2" >"$into/$1.version"
    fi
}

python_package xllamacpp "$XLLAMACPP"
python_package oteltap "$OTELTAP"

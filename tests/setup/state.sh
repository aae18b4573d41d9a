#!/bin/sh
# Installs the servers that the tests of coral-state start: PostgreSQL and Redis.
#
# The tests themselves start each server on a free port, with data of its own under target/, and
# stop it when they end, however they end. No server that already runs is touched.
set -eu

missing=
if ! ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 && ! command -v postgres >/dev/null; then
    missing="$missing postgresql"
fi
command -v redis-server >/dev/null || missing="$missing redis-server"

if [ -n "$missing" ]; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    # A server that the package starts by itself would only take memory.
    if [ -d /etc/postgresql-common ] || $sudo mkdir -p /etc/postgresql-common; then
        [ -e /etc/postgresql-common/createcluster.conf ] ||
            echo 'create_main_cluster = false' | $sudo tee /etc/postgresql-common/createcluster.conf >/dev/null
    fi
    $sudo apt-get update -q
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -q --no-install-recommends $missing
fi
echo "the servers that the tests of coral-state need are installed"

#!/bin/sh
# Stands in for a container engine: writes down how it was called, and starts the server without a
# container. What a real engine makes of the arguments it does not show.
here=$(dirname "$0")
printf '%s\n' "$*" >> "$here/calls"
case "$1" in
image) [ "$5" = present ] || { echo "no such image: $5" >&2; exit 1; } ;;
run)
    env > "$here/environment"
    while [ "$1" != --entrypoint ]; do shift; done
    program=$2
    shift 3
    exec "$program" "$@"
    ;;
esac

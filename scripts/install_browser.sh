#!/bin/sh
# Make sure that a Chromium is there for the browser tests. $1 is the environment's Python.
set -e
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done
echo "== Chromium for the browser tests"
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y chromium >/dev/null
else
    "$1" -m playwright install chromium
fi

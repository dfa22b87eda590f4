#!/usr/bin/env bash
# What both container recipes do on Debian 12, as root, in a folder that holds Widefield: packages, then `make setup`.
set -euo pipefail
cd "$(dirname "$0")/../.."
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  python3.11 python3.11-venv g++ make ca-certificates openssh-client libgl1 libglib2.0-0 >/dev/null
make setup
.venv/bin/widefield doctor
apt-get clean

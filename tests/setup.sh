#!/bin/bash
# setup.sh TOOL...: sees to what the builds need beyond these tools, which it can't install: Rust's cargo,
# Go's go. What the test cluster needs is installed by `cluster build`. PACKAGES: Debian's, of which one test
# alone has need.
set -euo pipefail

for tool in "$@"; do
  if ! command -v "$tool" > /dev/null; then
    echo "$tool is missing: install Rust (cargo) and Go (go), and put them on the PATH" >&2
    exit 1
  fi
done

# A C compiler and a static C library: Rust links with them, and one dependency (ring) has parts in C.
# nftables and iptables go into an image; jq reads cargo's description of the workspace.
missing=()
for package in gcc iptables jq libc6-dev nftables ${PACKAGES:-}; do
  [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2> /dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "these Debian packages are missing: ${missing[*]}: run this as root, or install them" >&2
    exit 1
  fi
  echo "installing Debian packages: ${missing[*]}"
  apt-get update --quiet
  DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends "${missing[@]}"
fi

#!/bin/bash
# setup.sh: gets what it takes to build for arm64 on another machine, and to run what was built: a C compiler
# and an emulator, which are installed, and what is only unpacked, below target/arm64:
#
#   rust    the newest Rust that Debian has, with its standard library for both machines. It is of a newer
#           Debian, and runs with that one's libraries (see `rustc`).
#   debian  nft and iptables for arm64, of this machine's Debian
set -euo pipefail
cd "$(dirname "$0")/../.."
PACKAGES="gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user ${PACKAGES:-}" tests/setup.sh cargo

folder=$PWD/target/arm64
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
here=$(dpkg --print-architecture)

# unpack NAME SUITE PACKAGE...: these and what they depend on. apt has lists of its own for that, and knows of
# nothing that is installed.
unpack() {
  local target=$folder/$1 suite=$2 apt=$folder/$1.apt
  shift 2
  [ ! -e "$target" ] || return 0
  rm -rf "$apt" "$target.new"
  mkdir -p "$apt"/{lists,cache/archives}/partial "$target.new"
  touch "$apt/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$apt/sources"
  cat > "$apt/conf" << END
Dir::Etc::SourceList "$apt/sources";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$apt/lists";
Dir::State::Status "$apt/status";
Dir::Cache "$apt/cache";
APT::Architectures { "$here"; "arm64"; };
APT::Install-Recommends "false";
END
  APT_CONFIG=$apt/conf apt-get update --quiet
  APT_CONFIG=$apt/conf apt-get install --quiet --yes --download-only "$@"
  for package in "$apt"/cache/archives/*.deb; do dpkg --extract "$package" "$target.new"; done
  rm -rf "$apt"
  mv "$target.new" "$target"
}

unpack rust unstable rustc libstd-rust-dev:arm64
unpack debian "$(. /etc/os-release && echo "$VERSION_CODENAME")" nftables:arm64 iptables:arm64
tests/arm64/rustc --version

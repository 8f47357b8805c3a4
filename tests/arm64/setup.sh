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

# record PACKAGE FOLDER: has dpkg's own records in that folder name the package and its files, as of an
# installed one: `sbom.sh` asks them.
record() {
  local package=$1 records=$2 name
  mkdir -p "$records/info"
  echo 1 > "$records/info/format"
  printf '%s\n' "$here" arm64 > "$records/arch"
  name=$(dpkg-deb --field "$package" Package)
  [ "$(dpkg-deb --field "$package" Multi-Arch)" != same ] || name+=:$(dpkg-deb --field "$package" Architecture)
  dpkg-deb --fsys-tarfile "$package" | tar --list | sed 's|^\.||; s|/$||; s|^$|/.|' > "$records/info/$name.list"
  { echo 'Status: install ok installed'; dpkg-deb --field "$package"; echo; } >> "$records/status"
}

# unpack NAME SUITE PACKAGE...: these and what they depend on. apt has lists of its own for that, and knows of
# nothing that is installed.
unpack() {
  local target=$folder/$1 suite=$2 apt=$folder/$1.apt
  shift 2
  [ ! -e "$target/var/lib/dpkg/status" ] || return 0
  rm -rf "$apt" "$target" "$target.new"
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
  for package in "$apt"/cache/archives/*.deb; do
    dpkg --extract "$package" "$target.new"
    record "$package" "$target.new/var/lib/dpkg"
  done
  rm -rf "$apt"
  mv "$target.new" "$target"
}

unpack rust unstable rustc libstd-rust-dev:arm64
unpack debian "$(. /etc/os-release && echo "$VERSION_CODENAME")" nftables:arm64 iptables:arm64
tests/arm64/rustc --version

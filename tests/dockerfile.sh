#!/bin/bash
# dockerfile.sh: builds both images of the Dockerfile by podman, on a base that no registry has: Debian by
# debootstrap, with a C compiler and make, as the default base has them, this machine's Rust, and the
# certificates that this machine trusts. Each image must have the files of the one that the tests have, and
# find its program by the program's name. Needs root.
#
# The programs are those of `dev`, since `release` takes much longer to compile. What is compiled stays in
# target/dockerfile/target for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$PWD/target/dockerfile
release=$(. /etc/os-release && echo "$VERSION_CODENAME")
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
rust=$(rustc --print sysroot)
base=localhost/base:$(rustc --version | cut -d ' ' -f 2)
triple=$(rustc --version --verbose | sed -n 's/^host: //p')

mkdir -p "$folder"/target/{"$triple",debug,plugin}
echo '{"default": [{"type": "insecureAcceptAnything"}]}' > "$folder/policy.json"
podman() { command podman --root "$folder/images" --runroot "$folder/run" --storage-driver overlay "$@"; }

if ! podman image exists "$base"; then
  rm -rf "$folder/base"
  debootstrap --variant=minbase --include=ca-certificates,gcc,libc6-dev,make "$release" "$folder/base" "$mirror"
  # The folders themselves are renamed, too: in the base /bin and /lib are links.
  tar --create --directory "$folder/base" . \
    --transform 's,^\(bin\|lib\)\(/\|$\),usr/local/\1\2,S' --directory "$rust" bin lib \
    --directory / etc/ssl/certs/ca-certificates.crt | podman import - "$base"
  rm -rf "$folder/base"
fi

# A build in a container of its own would need rights that a machine in a container may not have.
volumes=(--volume "${CARGO_HOME:-$HOME/.cargo}/registry:/root/.cargo/registry")
for part in "$triple" debug plugin; do volumes+=(--volume "$folder/target/$part:/source/target/$part"); done
for image in operator node-agent; do
  podman build --isolation chroot --network host --signature-policy "$folder/policy.json" "${volumes[@]}" \
    --build-arg "BASE=$base" --build-arg PROFILE=dev --target "$image" --tag "localhost/$image" .
  config=$(podman image inspect --format '{{json .Config}}' "localhost/$image")
  program=$(jq --raw-output '.Entrypoint[0]' <<< "$config")
  path=$(jq --raw-output '.Env[] | select(startswith("PATH=")) | ltrimstr("PATH=")' <<< "$config")
  root=$(podman image mount "localhost/$image")
  diff <(cd "target/images/$image" && find . | sort) <(cd "$root" && find . | sort)
  env --ignore-environment PATH="$path" "$(command -v chroot)" "$root" "$(basename "$program")" --version
  podman image unmount "localhost/$image"
done

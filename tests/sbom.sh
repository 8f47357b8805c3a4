#!/bin/bash
# sbom.sh ROOT NAME VERSION: prints which Debian packages the files of a root file system are of, as a
# CycloneDX document. Our own programs lie at its top and have documents of their own, from cargo. A file that
# is of no package that is installed here is an error.
set -euo pipefail
root=$1 name=$2 version=$3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

find "$root" -mindepth 2 -type f -printf '/%P\n' | sort > "$folder/files"
# The folders /lib and /usr/lib are one, and a package names either. Not every path has an owner.
sed 's|^/usr/|/|; p; s|^|/usr|' "$folder/files" | xargs dpkg-query --search > "$folder/owners" 2> /dev/null || true
awk -v root="$root" '
  function plain(path) { sub("^/usr/", "/", path); return path }
  FNR == NR { at = index($0, ": /"); owner[plain(substr($0, at + 2))] = substr($0, 1, at - 1); next }
  plain($0) in owner { print owner[plain($0)]; next }
  { print "sbom.sh: " root $0 " is of no Debian package that is installed here" > "/dev/stderr"; lacks = 1 }
  END { exit lacks }
' "$folder/owners" "$folder/files" > "$folder/all"
sort -u "$folder/all" | xargs dpkg-query --show --showformat '${Package}\t${Version}\t${Architecture}\n' > "$folder/packages"
jq --raw-input --null-input --arg name "$name" --arg version "$version" --arg debian "$(. /etc/os-release && echo "$VERSION_ID")" '
  [inputs | split("\t") | {
    type: "library", name: .[0], version: .[1],
    purl: "pkg:deb/debian/\(.[0])@\(.[1] | @uri)?arch=\(.[2])&distro=debian-\($debian)"
  } | . + {"bom-ref": .purl}] | {
    bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
    metadata: {component: {type: "container", name: $name, version: $version}},
    components: .
  }' "$folder/packages"

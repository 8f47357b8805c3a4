#!/bin/bash
# setup.sh: gets an emulator and the kernel of Debian 12, which is only unpacked, and makes the files that it
# boots with.
set -euo pipefail
cd "$(dirname "$0")/../.."
PACKAGES="busybox-static kmod qemu-system-x86" tests/setup.sh cargo

folder=target/older-linux
linux=$folder/linux
if [ ! -e "$linux" ]; then
  rm -rf "$linux.new"
  mkdir -p "$linux.new"
  apt-get update --quiet
  package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: //p')
  (cd "$linux.new" && apt-get download --quiet "$package")
  dpkg --extract "$linux.new/$package"_*.deb "$linux.new"
  rm "$linux.new/$package"_*.deb
  depmod --basedir "$linux.new" "${package#linux-image-}"
  mv "$linux.new" "$linux"
fi

# What it takes to see this machine's files; all else is among those.
files=$folder/files
rm -rf "$files"
mkdir -p "$files"/{host,memory,root}
cp tests/older-linux/init.sh "$files/init"
cp "$(command -v busybox)" "$files"
for module in virtio_pci 9pnet_virtio 9p overlay; do
  modprobe --dirname "$linux" --set-version "$(ls "$linux/lib/modules")" --show-depends "$module"
done | awk '!seen[$2]++ { print $2 }' | while read -r file; do
  cp "$file" "$files"
  echo "${file##*/}"
done > "$files/modules"
(cd "$files" && find . | busybox cpio -o -H newc 2> /dev/null) > "$folder/initramfs"

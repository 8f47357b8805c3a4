#!/busybox sh
# init.sh: the guest's first process. The guest's files are the host's, below a layer in memory that takes
# what is written. FOLDER, COMMAND and MODULES, the folder of the kernel's, are on the kernel's command line.
set -e
while read -r module; do /busybox insmod "/$module"; done < /modules
/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /host
/busybox mount -t tmpfs memory /memory
/busybox mkdir /memory/upper /memory/work
/busybox mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work files /root
/busybox mount -t proc proc /root/proc
/busybox mount -t sysfs sys /root/sys
/busybox mount -t devtmpfs dev /root/dev
/busybox mkdir -p /root/dev/shm /root/lib/modules
/busybox mount -t tmpfs memory /root/dev/shm
/busybox mount -t tmpfs memory /root/run
/busybox mount --bind "/root$MODULES" /root/lib/modules
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# Whoever wants br_netfilter loads it by its name, on any node. The others are loaded when they are needed,
# but here that takes longer than the agent waits for nft. At the end the last words get time to leave.
exec /busybox switch_root /root /bin/sh -c '
  modprobe --all br_netfilter nft_chain_nat nft_ct nft_fib_inet nft_masq
  cd "$FOLDER"
  printf "\nbegins on Linux %s\n" "$(uname --kernel-release)"
  $COMMAND
  echo "ended with exit code $?"
  sleep 1
  echo b > /proc/sysrq-trigger'

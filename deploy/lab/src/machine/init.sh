#!/bin/sh
# The first process of a node's machine: ADDRESS/PREFIX DATA_DIR REPLICATOR CONFIG.
# The root is the host's, read-only: only the two disks can be written.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
trap 'echo o >/proc/sysrq-trigger; sleep 60' EXIT
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
modules="/usr/lib/uml/modules/$(uname -r)/kernel"
insmod "$modules/fs/fuse/fuse.ko"
mount -t ext4 /dev/ubda "$2"
ip link set lo up
ip addr add "$1" dev vec0
ip link set vec0 up
"$3" --config "$4"

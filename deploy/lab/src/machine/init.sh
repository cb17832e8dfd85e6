#!/bin/sh
# The first process of a node's machine: ADDRESS/PREFIX DATA_DIR REPLICATOR CONFIG JOBS.
# The root is the host's, read-only: only the two disks and the host's directory JOBS can be written.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
trap 'echo o >/proc/sysrq-trigger; sleep 60' EXIT
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
modules="/usr/lib/uml/modules/$(uname -r)/kernel"
insmod "$modules/fs/fuse/fuse.ko"
insmod "$modules/drivers/block/loop.ko" max_loop=4
insmod "$modules/drivers/block/nbd.ko" nbds_max=4
mount -t ext4 /dev/ubda "$2"
ip link set lo up
ip addr add "$1" dev vec0
ip link set vec0 up

# Runs every script that appears in JOBS, beside the others.
mkdir /run/jobs
mount -t hostfs -o "$5" none /run/jobs
(
    cd /run/jobs
    while :; do
        for script in *.job; do
            [ -e "$script" ] || continue
            job="${script%.job}"
            mv "$script" "$job.started"
            (
                status=0
                sh -eu "$job.started" >"$job.output" 2>&1 || status=$?
                echo "$status" >"$job.ending"
                mv "$job.ending" "$job.ended"
            ) &
        done
        sleep 0.2
    done
) &

# Its end is not the machine's: whoever manages a node starts it again.
while :; do
    "$3" --config "$4" || sleep 0.2
done

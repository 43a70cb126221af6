#!/usr/bin/env bash
# Runs a command on a machine that systemd has booted:
#
#   machine.sh DIR COMMAND...
#
# The machine is a set of namespaces of the kernel, as a container has. Its file
# system is this machine's, below a layer in memory that takes all changes and
# is dropped at the end, with DIR as /test. It has a network of its own with
# loopback only, and starts no service by itself but the journal. It needs root.
set -euo pipefail
dir=$(realpath "$1")
shift
state=$(mktemp -d)
group=cmekproxy-test-$$ # the control group of all its processes

# shellcheck disable=SC2016 # expanded by the inner shells
# groups COMMAND... runs a command with the tree of control groups as $state.
groups() { unshare --mount sh -euc 'mount -t cgroup2 cgroup2 "$0"; cd "$0"; "$@"' "$state" "$@"; }

clean() {
  [ -z "${outer:-}" ] || kill -KILL "$outer" || true # and with it all others
  wait 2>/dev/null
  cd /
  for _ in {1..20}; do
    groups sh -c '[ ! -e "$0" ] || find "$0" -depth -type d -exec rmdir {} +' "$group" 2>/dev/null && break
    sleep 0.1
  done
  rmdir "$state"
}
trap clean EXIT

# boot is run in namespaces. Settings of the kernel are not the machine's, so
# they are read-only, and so is what could change the clock or load a module.
boot() {
  mount -t tmpfs -o mode=755 tmpfs "$state"
  cd "$state"
  mkdir changes work root
  mount -t overlay -o lowerdir=/,upperdir=changes,workdir=work overlay root
  cd root
  mkdir -p test mnt
  mount --bind "$dir" test
  mount -t proc proc proc
  mount --bind proc/sys proc/sys
  mount -o remount,bind,ro proc/sys
  [ ! -e proc/sysrq-trigger ] || mount --bind /dev/null proc/sysrq-trigger
  mount -t sysfs -o ro sysfs sys
  mount -t cgroup2 cgroup2 sys/fs/cgroup
  for path in run tmp dev; do mount -t tmpfs -o mode=755 tmpfs "$path"; done
  chmod 1777 tmp
  for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
  done
  mkdir dev/pts dev/shm
  mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
  mount -t tmpfs -o mode=1777 tmpfs dev/shm
  ln -s pts/ptmx dev/ptmx
  ln -s /proc/self/fd dev/fd
  ip link set lo up

  # Only services that the test starts.
  for wants in usr/lib/systemd/system/*.wants etc/systemd/system/*.wants; do
    [ ! -d "$wants" ] || mount -t tmpfs -o mode=755 tmpfs "$wants"
  done
  printf '[Unit]\nRequires=basic.target\nWants=systemd-journald.service systemd-tmpfiles-setup.service\nAfter=basic.target\n' \
    >etc/systemd/system/booted.target
  rm -f usr/sbin/policy-rc.d # which forbids packages to start services, in images of containers
  : >etc/fstab
  : >etc/machine-id

  pivot_root . mnt
  umount --lazy /mnt
  mount --make-rshared / # systemd mounts credentials in a namespace of its own
  exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin setpriv --bounding-set -sys_time,-sys_module,-sys_rawio,-syslog \
    /lib/systemd/systemd --unit=booted.target --log-target=journal --show-status=false
}
export -f boot
export state dir

groups mkdir "$group"
(
  groups sh -c 'echo "$1" >"$0/cgroup.procs"' "$group" "$BASHPID"
  exec unshare --fork --kill-child --pid --mount --uts --ipc --cgroup --net --propagation private bash -euc boot
) </dev/null &
outer=$!

# inside COMMAND... runs a command on the machine.
inside() {
  nsenter --target "$systemd" --mount --uts --ipc --net --pid --cgroup \
    env -i --chdir=/ PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"
}
for _ in {1..100}; do
  systemd=$(pgrep --parent "$outer" --exact systemd || true)
  if [ -n "$systemd" ] && inside systemctl is-active --quiet booted.target 2>/dev/null; then break; fi
  kill -0 "$outer"
  sleep 0.1
done
inside systemctl is-active --quiet booted.target || { inside journalctl --no-pager | tail -30; exit 1; }
inside "$@"

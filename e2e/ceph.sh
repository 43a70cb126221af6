#!/bin/sh
# One-node Ceph object gateway on loopback, as an S3 store for tests. Debian 12: apt-get install --no-install-recommends
# ceph-mon ceph-osd radosgw ceph-common. No mgr, no cephadm, nothing outside DIR.
#
#   ceph.sh up DIR PORT     make it if it is not there, start what does not run, return when S3 answers on 127.0.0.1:PORT
#   ceph.sh down DIR        stop it; the data stays (remove DIR to forget it)
#
# Takes 127.0.0.1:PORT (S3) to PORT+19. Environment, all only when DIR is made: CEPH_STORE=memstore (default: objects in
# memory, written to DIR by a clean stop) or bluestore (a sparse file); CEPH_GIB=4, its size; CEPH_ACCESS=cephaccess,
# CEPH_SECRET=cephsecret12, the S3 user's keys; CEPH_REGION=, the region that CreateBucket accepts besides none.
set -eu
umask 077
usage() { sed -n 's/^# \{0,1\}//;2,10p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
mkdir -p "$2"
dir=$(cd "$2" && pwd)
conf=$dir/ceph.conf

runs() { # NAME: the daemon of that name is ours and alive
	pid=$(cat "$dir/$1.pid" 2>/dev/null) || return 1
	{ tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF -- "-c $conf "
}
start() { # NAME COMMAND...
	name=$1; shift
	if runs "$name"; then return; fi
	setsid nohup "$@" -c "$conf" -f >>"$dir/$name.out" 2>&1 </dev/null &
	echo $! >"$dir/$name.pid"
}
stop() { # NAME: TERM, and KILL after 30 s
	if runs "$1"; then
		kill "$pid"
		n=0
		while runs "$1"; do
			n=$((n + 1))
			if [ $n -gt 150 ]; then kill -9 "$pid"; fi
			sleep 0.2
		done
	fi
	rm -f "$dir/$1.pid"
}
fail() { echo "ceph.sh: $1" >&2; tail -n 5 "$dir"/*.out "$dir"/*.log >&2 2>/dev/null || true; exit 1; }

auth() { ceph-authtool "$@" --gen-key >>"$dir/make.out"; }
make() {
	port=$1
	fsid=$(cat /proc/sys/kernel/random/uuid)
	store=${CEPH_STORE:-memstore}
	bytes=$((${CEPH_GIB:-4} << 30))
	mkdir -p "$dir/mon" "$dir/osd" "$dir/rgw" "$dir/crash"
	cat >"$conf.new" <<CONF
[global]
fsid = $fsid
mon_host = v2:127.0.0.1:$((port + 1))
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
ms_bind_ipv6 = false
ms_bind_port_min = $((port + 2))
ms_bind_port_max = $((port + 19))
keyring = $dir/keyring
admin_socket =
log_file = $dir/\$name.log
mon_cluster_log_file = $dir/cluster.log
crash_dir = $dir/crash
run_dir = $dir
# One OSD holds everything, once.
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
[mon]
mon_data = $dir/mon
auth_allow_insecure_global_id_reclaim = false
# Each new pool is a round of paxos, which by default waits a second for more to do.
paxos_propose_interval = 0.05
mon_data_avail_crit = 1
[osd]
osd_data = $dir/osd
osd_objectstore = $store
# A memstore writes itself to disk in a stop that is not a fast one only.
osd_fast_shutdown = false
memstore_device_bytes = $bytes
bluestore_block_size = $bytes
bluestore_block_create = true
bluestore_cache_autotune = false
bluestore_cache_size = 134217728
[client.rgw.a]
rgw_data = $dir/rgw
# Without tcp_nodelay each GET with a body takes 40 ms longer.
rgw_frontends = beast endpoint=127.0.0.1:$port tcp_nodelay=1
rgw_thread_pool_size = 64
# What is deleted is freed after seconds, not hours.
rgw_gc_obj_min_wait = 5
rgw_gc_processor_period = 10
rgw_gc_processor_max_time = 10
# SSE-C and SSE-KMS over plain HTTP, with a key in the configuration: to compare with, never for data.
rgw_crypt_require_ssl = false
rgw_crypt_s3_kms_backend = testing
rgw_crypt_s3_kms_encryption_keys = testkey-1=$(head -c 32 /dev/urandom | base64) testkey-2=$(head -c 32 /dev/urandom | base64)
CONF
	auth -C "$dir/keyring" -n mon. --cap mon 'allow *'
	auth "$dir/keyring" -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
	auth "$dir/keyring" -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
	auth "$dir/keyring" -n client.rgw.a --cap mon 'allow rw' --cap osd 'allow rwx'
	monmaptool --create --clobber --fsid "$fsid" --addv a "[v2:127.0.0.1:$((port + 1))]" "$dir/monmap" >>"$dir/make.out"
	ceph-mon -c "$conf.new" -i a --mkfs --monmap "$dir/monmap" --keyring "$dir/keyring" >>"$dir/make.out" 2>&1
	printf 'CEPH_ACCESS=%s\nCEPH_SECRET=%s\n' "${CEPH_ACCESS:-cephaccess}" "${CEPH_SECRET:-cephsecret12}" >"$dir/s3user"
	mv "$conf.new" "$conf"
}

made=yes
trap '[ $made = yes ] || fail "not made"' EXIT
case $1 in
up)
	[ $# = 3 ] || usage
	if [ ! -e "$conf" ]; then
		[ -z "$(ls -A "$dir")" ] || { echo "ceph.sh: $dir is not empty, and was not made by this" >&2; exit 1; }
		made=no; make "$3"; made=yes
	fi
	grep -q "endpoint=127.0.0.1:$3 " "$conf" || fail "$dir was made for another port"
	start mon ceph-mon -i a
	if [ ! -e "$dir/osd/made" ]; then
		timeout 60 ceph -c "$conf" osd new "$(sed -n 's/^fsid = //p' "$conf")" 0 >>"$dir/make.out" 2>&1 || fail "the mon does not answer"
		ceph-osd -c "$conf" -i 0 --mkfs --osd-uuid "$(sed -n 's/^fsid = //p' "$conf")" >>"$dir/make.out" 2>&1 || fail "no OSD"
		touch "$dir/osd/made"
	fi
	start osd ceph-osd -i 0
	if [ ! -e "$dir/user" ]; then
		. "$dir/s3user"
		timeout 120 radosgw-admin -c "$conf" -n client.rgw.a user create --uid=test --display-name=test \
			--access-key="$CEPH_ACCESS" --secret-key="$CEPH_SECRET" >"$dir/user.new" 2>>"$dir/make.out" || fail "no user"
		mv "$dir/user.new" "$dir/user"
	fi
	if [ -n "${CEPH_REGION:-}" ] && [ ! -e "$dir/region" ]; then
		admin="radosgw-admin -c $conf -n client.rgw.a"
		$admin zonegroup get --rgw-zonegroup=default 2>>"$dir/make.out" |
			sed "s/\"api_name\": \"[^\"]*\"/\"api_name\": \"$CEPH_REGION\"/" >"$dir/zonegroup" || fail "no zonegroup"
		$admin zonegroup set --rgw-zonegroup=default <"$dir/zonegroup" >>"$dir/make.out" 2>&1 || fail "no region"
		touch "$dir/region"
	fi
	start rgw radosgw -n client.rgw.a
	n=0
	until curl -so /dev/null "http://127.0.0.1:$3/"; do
		n=$((n + 1))
		[ $n -le 240 ] && runs rgw || fail "S3 does not answer"
		sleep 0.25
	done
	;;
down)
	[ $# = 2 ] || usage
	stop rgw; stop osd; stop mon
	;;
*) usage ;;
esac

# shellcheck shell=sh
# What the smoke tests share: finding the programs, a node, devices; and saying what went wrong.
#
# A test sets `rule` to the rule that it holds and sources this file, which prints the rule, sets
# IOASIDCTL, IOASID_NODE, $work (a directory in memory, gone at the end), $kind (simulated or vfio)
# and $devices. Environment, all optional:
#   IOASID_NODE            the node; without it /dev/ioasid, and where there is none a daemon of our
#                          own is started, with simulated devices, and ended with the test
#   IOASIDCTL, CUSED       the programs; else from PATH, then from the tree's target directory
#   IOASID_TEST_SIMULATED  names of simulated devices to use, separated by blanks
#   IOASID_TEST_VFIO       devices on vfio-pci to use, each ADDRESS:GROUP
#
# Exit status of a test: 0 the rule holds, 1 it does not, 77 this host cannot tell.
set -eu

# Who is not root may mount a node of his own only in a user namespace of his own.
if [ -z "${IOASID_NODE:-}" ] && [ ! -e /dev/ioasid ] && [ "$(id -u)" != 0 ] &&
	unshare -Urm true 2>/dev/null; then
	exec unshare -Urm "$0"
fi

echo "rule: ${rule:?}"

tree=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")/ioasid-smoke.XXXXXX")
daemon=

# The context has to end before its daemon does.
clean_up() {
	exec 7>&- 8>&-
	if [ -n "$daemon" ]; then
		kill -TERM "$daemon" 2>/dev/null || true
		tries=0
		while [ "$tries" -lt 100 ] && kill -0 "$daemon" 2>/dev/null; do
			tries=$((tries + 1))
			sleep 0.05
		done
		kill -KILL "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
	fi
	rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

skip() {
	echo "skipped: $*"
	exit 77
}

fail() {
	echo "FAILED: $*" >&2
	exit 1
}

# program NAME: prints where it is.
program() {
	for candidate in "$(command -v "$1" || true)" \
		"${CARGO_TARGET_DIR:-$tree/target}/release/$1" "${CARGO_TARGET_DIR:-$tree/target}/debug/$1"; do
		if [ -x "$candidate" ]; then
			echo "$candidate"
			return
		fi
	done
	fail "there is no $1; build it: cargo build -p $1"
}

start_daemon() {
	{ [ -r /dev/fuse ] && [ -w /dev/fuse ]; } ||
		skip "there is no /dev/ioasid, and no /dev/fuse that you may use to make another node"
	CUSED=${CUSED:-$(program cused)}
	[ "$(id -u)" = 0 ] ||
		skip "there is no /dev/ioasid, and to mount another node takes root or a user namespace"
	IOASID_NODE=$work/ioasid
	mkfifo "$work/ready"
	printf '%s' "${settings:-}" >"$work/settings.toml"
	"$CUSED" --config "$work/settings.toml" --transport fuse --path "$IOASID_NODE" --simulated 4 \
		--log-level warn --ready-fd 9 9>"$work/ready" >"$work/daemon.log" 2>&1 &
	daemon=$!
	# It writes a line once the node is there. If it ends before, this reads nothing.
	[ -n "$(timeout 30 head -n 1 "$work/ready")" ] ||
		fail "the daemon did not start: $(cat "$work/daemon.log")"
}

IOASIDCTL=${IOASIDCTL:-$(program ioasidctl)}
unset IOASID_FD
if [ -n "${settings:-}" ]; then
	start_daemon
elif [ -z "${IOASID_NODE:-}" ]; then
	IOASID_NODE=/dev/ioasid
	[ -e "$IOASID_NODE" ] || start_daemon
fi
export IOASID_NODE

# ctl and ctl8: ioasidctl on the contexts of descriptors 7 and 8.
ctl() { "$IOASIDCTL" --fd 7 "$@"; }
ctl8() { "$IOASIDCTL" --fd 8 "$@"; }

# The devices on vfio-pci, one of each group, as ADDRESS:GROUP.
vfio_devices() {
	groups=' '
	for device in /sys/bus/pci/drivers/vfio-pci/*:*; do
		[ -e "$device/iommu_group" ] || continue
		group=$(basename "$(readlink "$device/iommu_group")")
		case $groups in
		*" $group "*) ;;
		*) echo "$(basename "$device"):$group" ;;
		esac
		groups="$groups$group "
	done
}

if [ -n "${IOASID_TEST_SIMULATED:-}" ]; then
	kind=simulated devices=$IOASID_TEST_SIMULATED
elif [ -n "${IOASID_TEST_VFIO:-}" ]; then
	kind=vfio devices=$IOASID_TEST_VFIO
elif [ "$("$IOASIDCTL" check simulated)" = 1 ]; then
	kind=simulated devices="sim0 sim1"
else
	kind=vfio devices=$(vfio_devices)
	[ -n "$devices" ] || skip "there is neither a simulated device nor one on vfio-pci"
fi

# need_devices N
need_devices() {
	# shellcheck disable=SC2086 # the list is split on purpose
	set -- "$1" $devices
	[ $(($# - 1)) -ge "$1" ] || skip "this takes $1 devices; there is: $devices"
}

need_simulated() {
	[ "$kind" = simulated ] || skip "only simulated devices do DMA on command"
}

# bind_device FD N: binds the N-th device (from 1) to the context of a descriptor; prints its number.
bind_device() {
	fd=$1 n=$2
	# shellcheck disable=SC2086 # the list is split on purpose
	set -- $devices
	shift $((n - 1))
	case $kind in
	simulated) "$IOASIDCTL" --fd "$fd" bind --simulated "$1" ;;
	vfio) "$IOASIDCTL" --fd "$fd" bind --vfio-group "/dev/vfio/${1##*:}" "${1%:*}" ;;
	esac
}

# buffer NAME: makes a page of zeroes in memory; prints its path.
buffer() {
	truncate -s 4096 "$work/$1"
	echo "$work/$1"
}

# entry FILE OFFSET VALUE: writes a number of 64 bits, little endian, as tables have them.
entry() {
	value=$(($3)) bytes=
	for _ in 1 2 3 4 5 6 7 8; do
		bytes=$bytes$(printf '\\%03o' $((value & 255)))
		value=$((value >> 8))
	done
	# shellcheck disable=SC2059 # the bytes are escapes
	printf "$bytes" | dd of="$1" bs=1 seek=$(($2)) conv=notrunc 2>/dev/null
}

# equal WHAT EXPECTED ACTUAL
equal() {
	[ "$2" = "$3" ] || fail "$1: expected \`$2', got \`$3'"
}

# refused ERRNO COMMAND...: the node must refuse, with this errno and with a sentence, which is then
# in $work/error.
refused() {
	errno=$1 status=0
	shift
	"$@" >"$work/output" 2>"$work/error" || status=$?
	[ "$status" = 1 ] || fail "\`$*' ended with $status instead of 1 (refused): $(cat "$work/error")"
	case $(cat "$work/error") in
	"ioasidctl: "*": $errno: "*"(no explanation was given)") fail "\`$*' was refused without a reason" ;;
	"ioasidctl: "*": $errno: "?*) ;;
	*) fail "\`$*' was expected to give $errno: $(cat "$work/error")" ;;
	esac
}

# explained TEXT: the last refusal's sentence must contain it.
explained() {
	case $(cat "$work/error") in
	*"$1"*) ;;
	*) fail "the explanation does not name \`$1': $(cat "$work/error")" ;;
	esac
}

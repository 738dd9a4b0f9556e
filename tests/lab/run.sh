#!/bin/bash
# run.sh: what ioasid-run costs: only the calls that it is there for.
set -euo pipefail

usage() {
	cat <<'END'
Usage: tests/lab/run.sh ADDRESS-1 ADDRESS-2

Runs the flows of the proposal (rfc-flows) under ioasid-run and strace, on the edu devices of those PCI
addresses. The supervisor has answered for a call exactly as often as the program has made one that is
intercepted, though it makes many more. Then it prints how
long a call takes that is not intercepted, under ioasid-run and without; that is not judged, as the
machine is noisy.

Needs root, strace, IOASID_NODE and IOASID_RUN. C_PROGRAMS names the directory of the compiled
programs (default: target/c).
END
}

case ${1:-} in --help | -h) usage && exit ;; esac
(($# == 2)) || { usage >&2 && exit 2; }
run=("${IOASID_RUN:?}" --node "${IOASID_NODE:?}" --)
programs=${C_PROGRAMS:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)/target/c}
source "$(dirname "${BASH_SOURCE[0]}")/notified.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

ok() { echo "ok: $*"; }
die() {
	echo "run.sh: $*" >&2
	exit 1
}

# ---------------------------------------------------------------- which calls are answered for

command -v strace >/dev/null || { echo "there is no strace" && exit 77; }
explained=("${IOASID_RUN}" --node "$IOASID_NODE" --explain="$work/explained" --)
"${explained[@]}" strace -f -X raw -e trace=ioctl -o "$work/calls" "$programs/rfc-flows" "$1" "$2" >"$work/output" 2>&1 ||
	die "the flows fail: $(tail -n 5 "$work/output")"
answered=$(answers "$work/explained")

# VFIO_GROUP_SET_CONTAINER, UNSET_CONTAINER and GET_DEVICE_FD, VFIO_BIND_IOASID_FD to VFIO_DETACH_IOASID, on any file.
intercepted=$(grep -cE 'ioctl\([^,]*, (0x3b68|0x3b69|0x3b6a|0x3b7a|0x3b7b|0x3b7c|0x3b7d)[,)]' "$work/calls" || true)
others=$(($(grep -c 'ioctl(' "$work/calls") - intercepted))
((intercepted > 20 && others > 50)) ||
	die "the program has made $intercepted calls to intercept and $others other ioctls: too few to tell"
((answered == intercepted)) ||
	die "the supervisor has answered for $answered calls, where the program has made $intercepted that are intercepted"
ok "the supervisor has answered for the $answered calls that it is there for, and for none of $others other ioctls"

# ---------------------------------------------------------------- what the others cost

# each COMMAND...: nanoseconds of one read() or write() of dd.
each() {
	local count=100000 began
	began=${EPOCHREALTIME/./}
	"$@" dd if=/dev/zero of=/dev/null bs=1 count=$count status=none
	echo $(((${EPOCHREALTIME/./} - began) * 1000 / count / 2))
}
directly=() launched=()
for _ in 1 2 3; do
	directly+=("$(each env)")
	launched+=("$(each "${run[@]}")")
done
echo "figures: a read() or write(), ns: ${directly[*]} directly, ${launched[*]} under ioasid-run"

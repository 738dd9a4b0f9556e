#!/bin/bash
# daemon-death.sh: a daemon killed while it leads a program leaves that program right, or dead.
set -euo pipefail

usage() {
	cat <<'END'
Usage: tests/lab/daemon-death.sh NODE ADDRESS GROUP CUSED [ROUNDS]

Starts a daemon of its own (the program CUSED), has in-context map and unmap private memory with the
edu device of that PCI address and VFIO group, and kills the daemon with SIGKILL at a random moment;
ROUNDS times (default 20). Each time the program must see an error that is true and end by itself, or
have been killed along with the daemon; and no page may stay pinned, nor the group stay taken.

Needs root, a free NODE and nobody else who pins memory. C_PROGRAMS names the directory of the compiled
programs (default: target/c).
END
}

if (($# < 4 || $# > 5)); then
	usage >&2
	exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
source "$root/scripts/node.sh"
source "$root/tests/lab/pins.sh"
node=$1 address=$2 group=$3 cused=$4 rounds=${5:-20}
programs=${C_PROGRAMS:-$root/target/c}
work=$(mktemp -d)
said=$work/said ended=$work/ended
trap 'kill -KILL ${node_pid:-} 2>/dev/null || true; rm -rf "$work"' EXIT

node_is_gone() { [[ ! -e $node ]]; }
is_ready() { grep -q '^ready' "$said"; }
has_ended() { [[ -s $ended ]]; }

nothing_pinned || die "something else has pinned $(pinned) pages"
declare -A ends=()
for ((round = 0; round < rounds; round++)); do
	start_node "$cused" --transport cuse --name "${node##*/}" --log-level error ||
		die "the daemon does not start"
	rm -f "$said" "$ended"
	{
		status=0
		"$programs/in-context" "$node" --vfio "$address:$group" --until-error || status=$?
		echo "$status" >"$ended"
	} >"$said" 2>&1 &
	await 30 "the program does not begin to map" is_ready
	sleep "0.0$((RANDOM % 90 + 10))"
	kill -KILL "$node_pid"
	wait "$node_pid" 2>/dev/null || true
	node_pid=
	await 20 "the program is still there 20 s after the daemon" has_ended
	status=$(<"$ended")
	case $status in
	0)
		end=$(tail -n 1 "$said")
		end=${end#after * rounds }
		;;
	137) end="the program was killed" ;;
	*) die "the program ended with status $status: $(tail -n 3 "$said")" ;;
	esac
	ends[$end]=$((${ends[$end]:-0} + 1))
	await 10 "pages are still pinned: $(pinned)" nothing_pinned
	await 10 "the group is still taken" "$programs/group-free" "$group"
	await 10 "$node is still there" node_is_gone
done
echo "ok: the daemon was killed $rounds times, and nothing stayed pinned"
for end in "${!ends[@]}"; do
	echo "ok: $end (${ends[$end]} times)"
done

#!/bin/bash
# stop.sh: a daemon that is told to stop leaves nothing behind, whatever programs hold.
set -euo pipefail

usage() {
	cat <<'END'
Usage: tests/lab/stop.sh NODE ADDRESS GROUP DAEMON

Has first-light-edu hold mapped memory and the open edu device of that PCI address and VFIO group,
and sends SIGTERM to the daemon (its process id). The daemon must end by itself, with its node
gone and no page pinned, while the program still lives; and when that ends, the group is free.

Needs root, and nobody else who pins memory. C_PROGRAMS names the directory of the compiled
programs (default: target/c).
END
}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

something_pinned() { (($(pinned) > 0)); }

# The daemon is a child of the one who runs this: ended, it stays as a zombie.
ended() { [[ ! -e /proc/$daemon || $(cut -d' ' -f3 "/proc/$daemon/stat" 2>/dev/null) == Z ]]; }

said=$(mktemp)
"$programs/first-light-edu" "$node" "$address" "$group" --hold >"$said" &
program=$!
trap 'kill -KILL "$program" 2>/dev/null || true; rm -f "$said"' EXIT
await 30 "first-light-edu does not hold anything" grep -q '^ready' "$said"
something_pinned || die "nothing is pinned although memory is mapped"

kill -TERM "$daemon"
await 10 "the daemon is still there after 10 s" ended
[[ ! -e $node ]] || die "$node is still there"
await 5 "pages are still pinned: $(pinned)" nothing_pinned
kill -0 "$program" || die "the program was ended, too"
ok "the daemon has ended, its node is gone, nothing is pinned; the program lives"

kill -KILL "$program"
wait "$program" 2>/dev/null || true
await 10 "the group is still taken" "$programs/group-free" "$group"
ok "with the program gone, the group is free"

#!/bin/bash
# release.sh: nothing of a program is left in the daemon and the kernel once it has closed the
# node in the middle of everything, or was killed.
set -euo pipefail

usage() {
	cat <<'END'
Usage: tests/lab/release.sh NODE ADDRESS GROUP DAEMON

Runs first-light-edu on the edu device of that PCI address and VFIO group, and has it close the
node, be killed and be terminated while memory is mapped and the device is open. After each, as
seen in /proc: no page is pinned, the daemon has no container, no group and none of the
program's memory, and the group can be taken by somebody else. DAEMON is its process id.

Needs root, and nobody else who pins memory. C_PROGRAMS names the directory of the compiled
programs (default: target/c).
END
}

source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
held='' out=$(mktemp)
trap '[[ -z $held ]] || kill -KILL "$held" 2>/dev/null || true; rm -f "$out"' EXIT

# ---------------------------------------------------------------- what there is

# Memory that is locked on the daemon's account, kB.
locked() { awk '/^VmLck:/ { print $2 }' "/proc/$daemon/status"; }

# The VFIO descriptors of the daemon, one a line.
vfio_descriptors() { find "/proc/$daemon/fd" -lname '/dev/vfio/*' -printf '%l\n' 2>/dev/null | sort; }

# The program's memory in the daemon: mapped, or only open.
programs_memory() {
	grep -c 'memfd:ioasid-test' "/proc/$daemon/maps" || true
	find "/proc/$daemon/fd" -lname '*memfd:ioasid-test*' 2>/dev/null | wc -l
}

state() {
	echo "pinned pages: $(pinned)"
	echo "locked by the daemon: $(locked) kB"
	echo "VFIO descriptors of the daemon: $(vfio_descriptors | xargs)"
	echo "pieces of programs' memory in the daemon: $(programs_memory | xargs)"
}

# nothing_left WHAT: waits, since the daemon learns of a close only after it, and then takes the
# group.
nothing_left() {
	local now='' deadline=$((SECONDS + 20))
	until now=$(state) && [[ $now == "$at_first" ]]; do
		((SECONDS < deadline)) ||
			die "$1, this is left:"$'\n'"$(diff <(echo "$at_first") <(echo "$now") || true)"
		sleep 0.1
	done
	until "$programs/group-free" "$group" 2>"$out"; do
		((SECONDS < deadline)) || die "$1, group $group is not free: $(<"$out")"
		sleep 0.1
	done
	kill -0 "$daemon" || die "$1, the daemon is gone"
	ok "$1, nothing is left, and group $group is free"
}

# ---------------------------------------------------------------- the program

# Starts the program and waits until its memory is mapped and was reached by the device.
hold() {
	local deadline=$((SECONDS + 60))
	: >"$out"
	"$programs/first-light-edu" "$node" "$address" "$group" --hold >"$out" 2>&1 &
	held=$!
	until grep -qx ready "$out"; do
		kill -0 "$held" 2>/dev/null || die "the program ended: $(<"$out")"
		((SECONDS < deadline)) || die "the program is not ready after 60 s: $(<"$out")"
		sleep 0.1
	done
}

# end SIGNAL: ends the program with it.
end() {
	local deadline=$((SECONDS + 20)) hangs=''
	kill -s "$1" "$held"
	{ # bash would tell how it ended
		until [[ ! -e /proc/$held || $(ps -o stat= -p "$held") == Z* ]]; do
			((SECONDS < deadline)) || hangs=yes
			[[ -z $hangs ]] || break
			sleep 0.1
		done
		[[ -n $hangs ]] || wait "$held" || true
	} 2>/dev/null
	[[ -z $hangs ]] || die "the program does not end on SIG$1: it hangs"
	held=
}

# That the questions above would notice something: while a program is there, they do.
something_is_there() {
	(($(pinned) >= 512)) || die "2 MiB are mapped, but only $(pinned) pages are pinned"
	[[ -n $(vfio_descriptors) ]] || die "a device is bound, but the daemon has no VFIO descriptor"
	[[ $(state) != "$at_first" ]] || die "a mapping does not show in what is looked at"
	if "$programs/group-free" "$group" 2>/dev/null; then
		die "a bound group could be taken by another program"
	fi
	ok "while it is mapped: $(pinned) pinned pages, $(locked) kB locked, $(vfio_descriptors | xargs)"
}

# ---------------------------------------------------------------- the run

at_first=$(state)
[[ -z $(vfio_descriptors) ]] || die "the daemon has a device already: $(vfio_descriptors | xargs)"
(($(pinned) == 0)) || die "somebody has pinned $(pinned) pages already"

hold
something_is_there
end KILL
nothing_left "after SIGKILL"

hold
end TERM
nothing_left "after SIGTERM"

"$programs/first-light-edu" "$node" "$address" "$group" --close-midway >"$out" 2>&1 ||
	die "closing mid-way: $(<"$out")"
nothing_left "after a close mid-way"

# Time and again, so that what leaks a little is seen.
for ((i = 0; i < 5; i++)); do
	hold
	end KILL
done
nothing_left "after five more programs were killed"

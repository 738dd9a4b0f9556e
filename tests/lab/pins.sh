# shellcheck shell=bash
# Waiting, and pages pinned for devices. To be sourced by bash.

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# await SECONDS WHAT COMMAND...: until the command succeeds.
await() {
	local times=$(($1 * 20)) what=$2
	shift 2
	until "$@"; do
		((times-- > 0)) || die "$what"
		sleep 0.05
	done
}

# Pages pinned for devices, on the whole machine. Each CPU counts by itself, until asked.
pinned() {
	cat /proc/sys/vm/stat_refresh
	awk '/^nr_foll_pin_acquired / { n += $2 } /^nr_foll_pin_released / { n -= $2 } END { print n + 0 }' \
		/proc/vmstat
}
nothing_pinned() { (($(pinned) == 0)); }

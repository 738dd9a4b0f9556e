#!/bin/bash
# package-powers.sh: the installed service has the powers that its unit names and no others, and
# real devices work with them.
set -euo pipefail

usage() {
	cat <<'END2'
Usage: tests/lab/package-powers.sh

To be run in the laboratory under systemd, as root, with the package installed, a simulated device
sim0 and two edu devices. Reads from /proc what the running service may do, and runs the programs that
need its more unusual powers. C_PROGRAMS names the directory of the compiled programs (default: target/c).
END2
}

if (($# != 0)); then
	usage >&2
	exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
programs=${C_PROGRAMS:-$here/../../target/c}
source "$here/pins.sh"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

ok() { echo "ok: [$SECONDS s] $*"; }
check() { # NAME COMMAND...
	local name=$1
	shift
	if timeout 120 "$@" >"$work/out" 2>&1; then
		ok "with these powers: $name"
	else
		failures=$((failures + 1))
		echo "not ok: $name" >&2
		tail -n 15 "$work/out" | sed 's/^/    /' >&2
	fi
}

pid=$(systemctl show --property MainPID --value cused.service)
status() { sed -n "s/^$1:\t*//p" "/proc/$pid/status"; }
equal() { [[ $2 == "$3" ]] || die "$1 is \"$3\" and not \"$2\""; }

# The numbers of linux/capability.h; the same list, with reasons, is in the unit and in docs/deploy.md.
mask=0
for number in 1 5 19 24 34 38 40; do # DAC_OVERRIDE KILL SYS_PTRACE SYS_RESOURCE SYSLOG PERFMON CHECKPOINT_RESTORE
	mask=$((mask | 1 << number))
done
wanted=$(printf %016x "$mask")
for set in CapPrm CapEff CapBnd; do equal "$set of the service" "$wanted" "$(status $set)"; done
for set in CapInh CapAmb; do equal "$set of the service" "$(printf %016x 0)" "$(status $set)"; done
equal "NoNewPrivs of the service" 1 "$(status NoNewPrivs)"
equal "Seccomp of the service" 2 "$(status Seccomp)"
for thread in "/proc/$pid/task"/*; do
	equal "Seccomp of ${thread##*/}" 2 "$(sed -n 's/^Seccomp:\t*//p' "$thread/status")"
done
ok "capabilities $wanted, no new privileges, a seccomp filter"

systemd-analyze security --threshold=20 --no-pager cused.service >"$work/out" ||
	die "exposure: $(tail -n 1 "$work/out")"
ok "$(sed -n 's/.*\(Overall exposure.*: [0-9.]*\).*/\1/p' "$work/out")"

# Its own view of the machine: it cannot write where it has no business.
inside() { nsenter --target "$pid" --mount -- "$@"; }
for place in /usr/sbin /etc /var/lib /sys/kernel/tracing; do
	inside test -d "$place" || die "$place is not there"
	if inside touch "$place/cused-test" 2>/dev/null; then die "$place can be written"; fi
done
[[ ! -e /proc/$pid/root/proc/sys/kernel ]] || die "/proc/sys is seen"
ok "the system is read-only for it, and /proc/sys hidden"

read -r _ address group <"$LAB_DEVICES_FILE"
read -r _ address2 group2 < <(tail -n +2 "$LAB_DEVICES_FILE")
edu=(/dev/ioasid "$address" "$group")
one=(--vfio "$address:$group") two=(--vfio "$address2:$group2")
check "5.1 with an edu device: bytes both ways" "$programs/first-light-edu" "${edu[@]}"
# Debian's kernel keeps perf_event_open from who has not CAP_SYS_ADMIN, unless told otherwise.
sysctl --quiet --write kernel.perf_event_paranoid=2
check "memory of every kind, private and registers too" \
	"$programs/memory-kinds" /dev/ioasid "${one[@]}" --peer "${two[1]}"
check "memory of every kind, simulated" "$programs/memory-kinds" /dev/ioasid --simulated sim0 --peer "${two[1]}"
check "registered memory" "$programs/registered" /dev/ioasid "${one[@]}"
check "the limit of locked memory" "$programs/locked-limit" /dev/ioasid "${one[@]}" "${two[@]}"
check "faults of a real device, from the kernel's log" "$programs/kernel-faults" "${edu[@]}"
check "private memory: who calls, and how" "$programs/in-context" /dev/ioasid "${one[@]}" "${two[@]}" \
	traced undumpable 32-bit small-stacks registers signals
check "an attacker writes no file that it may only read" "$programs/attacker" /dev/ioasid "${one[@]}" 300

denied=$(journalctl --no-pager --quiet --unit cused --grep 'denied|not permitted' || true)
[[ -z $denied ]] || echo "the service was refused something: $denied" >&2
exit $((failures > 0))

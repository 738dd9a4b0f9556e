#!/bin/bash
# dpdk.sh: Debian's dpdk-testpmd, unmodified, drives a network card under ioasid-run as it does on
# VFIO itself.
set -euo pipefail

usage() {
	cat <<'END'
Usage: tests/lab/dpdk.sh MEMORY ADDRESS-1 ADDRESS-2 [LAUNCHES]

Runs dpdk-testpmd twice at the same time: plainly on the network card of the first PCI address, and
under ioasid-run on that of the second. Both cards are on one wire and alone in their groups. MEMORY
is `hugepages` or `no-huge`. Then

- neither says an error that the other does not say;
- what each sends is received by the other, as it was sent;
- `ioasidctl --pid` shows the IOASID, the mappings and the device of the one under ioasid-run;
- while they send, the supervisor answers for no call at all;
- both send for the same time, and how many packets each has sent is printed, and not judged. Which card
  it is, and where the memory of a process happens to be, makes a few percent of difference, so both
  are started LAUNCHES times (2, an even number), with the cards exchanged each time.

Needs root, IOASID_NODE, IOASIDCTL, IOASID_RUN and dpdk-testpmd (scripts/build-dpdk).
IOASID_RUN=env compares VFIO with itself; nothing is then looked at with ioasidctl.
END
}

case ${1:-} in --help | -h) usage && exit ;; esac
(($# == 3 || $# == 4)) || { usage >&2 && exit 2; }
memory=$1 launches=${4:-2}
case $memory in
hugepages) options=() ;;
no-huge) options=(--no-huge -m 64) ;;
*) usage >&2 && exit 2 ;;
esac
run=${IOASID_RUN:?}
ctl=${IOASIDCTL:?}
node=${IOASID_NODE:?}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
dpdk=${DPDK:-$root/target/dpdk}
seconds=8

source "$root/tests/lab/notified.sh"
ok() { echo "ok: $*"; }
die() {
	echo "dpdk.sh: $*" >&2
	exit 1
}

# As if it were installed.
if ! command -v dpdk-testpmd >/dev/null; then
	[[ -x $dpdk/usr/bin/dpdk-testpmd ]] || die "there is no dpdk-testpmd: run scripts/build-dpdk"
	mount -t overlay -o "lowerdir=$dpdk/usr:/usr" overlay /usr || die "cannot lay $dpdk over /usr"
fi

# For two at a time: the laboratory's machine has few.
huge_pages=$(</proc/sys/vm/nr_hugepages)
if [[ $memory == hugepages ]] && ((huge_pages < 64)); then
	echo 64 >/proc/sys/vm/nr_hugepages
fi

work=$(mktemp -d)
declare -A pid input output thread
clean_up() {
	local who
	for who in "${!pid[@]}"; do
		kill -KILL "${pid[$who]}" 2>/dev/null || true
	done
	wait 2>/dev/null || true
	rm -rf "$work"
	echo "$huge_pages" >/proc/sys/vm/nr_hugepages
}
trap clean_up EXIT

# start WHO ADDRESS LAUNCHER...: starts a testpmd that waits for commands.
start() {
	local who=$1 address=$2 in out
	shift 2
	mkfifo "$work/$who.in" "$work/$who.out"
	exec {in}<>"$work/$who.in" {out}<>"$work/$who.out"
	input[$who]=$in output[$who]=$out
	# Into a pipe it writes in large pieces, otherwise.
	stdbuf -oL "$@" dpdk-testpmd -l 0,1 -n 1 -a "$address" --file-prefix "$who" "${options[@]}" -- -i \
		--nb-cores=1 --total-num-mbufs=2048 --no-mlockall --forward-mode=txonly \
		<"$work/$who.in" >"$work/$who.out" 2>&1 &
	pid[$who]=$!
}

# prompted WHO: waits until it asks for a command. What it has said is then in $said and its log.
# No process is started for this: while the cards send, the machine has no time for any.
prompted() {
	local deadline=$((SECONDS + 90)) piece
	said=
	until [[ $said == *'testpmd>' ]]; do
		piece=
		if read -r -d '>' -t 5 -u "${output[$1]}" piece; then
			piece+='>'
		elif ((SECONDS > deadline)) || ! kill -0 "${pid[$1]}" 2>/dev/null; then
			die "$1 does not answer, or has ended: ${said: -2000}$piece"
		fi
		said+=$piece
	done
	printf '%s\n' "$said" >>"$work/$1.log"
}

# tell WHO COMMAND: has it do a command, to its end.
tell() {
	echo "$2" >&"${input[$1]}"
	prompted "$1"
}

# worker PID: the thread that sends.
worker() {
	local task
	for task in "/proc/$1"/task/*; do
		[[ $(<"$task/comm") != *worker-1 ]] || { echo "$task" && return; }
	done
	die "process $1 has no worker"
}

# sent WHO: sets $packets, how many its card has counted as sent, and $busy, the time that its thread
# had the processor, ns.
sent() {
	read -r busy _ <"${thread[$1]}/schedstat"
	tell "$1" 'show port stats 0'
	[[ $said =~ TX-packets:\ +([0-9]+) ]] || die "$1 does not tell what it has sent: $said"
	packets=${BASH_REMATCH[1]}
}

mac() { sed -n 's/^Port 0: \([0-9A-F:]*\)$/\1/p' "$work/$1.log" | head -n 1; }

# crosses FROM TO: what one sends is what the other's card puts into its memory.
crosses() {
	local from=$1 to=$2 expected tries
	expected="src=$(mac "$from") - dst=02:00:00:00:00:00 - pool=[^ ]* - type=0x0800 - length=64 "
	tell "$to" 'set fwd rxonly'
	tell "$to" 'set verbose 1'
	tell "$from" 'set burst 4'
	# The wire may not be up yet.
	for ((tries = 0; tries < 20; tries++)); do
		tell "$to" start
		tell "$from" start
		sleep 0.1
		tell "$from" stop
		tell "$to" stop
		! grep -aq "$expected" "$work/$to.log" || break
	done
	((tries < 20)) || die "what $from sends is not received by $to: $(grep -a 'src=' "$work/$to.log" | tail -n 3)"
	tell "$from" 'set burst 32'
	tell "$to" 'set verbose 0'
	tell "$to" 'set fwd txonly'
}

# What it says that may be an error, without what differs from run to run anyway.
complaints() {
	sed 's/EAL:/\n&/g; s/Interactive-mode selected/\n&/g' "$work/$1.log" | grep -av -- '-packets:' | grep -aiE 'error|warn|fail|cannot|could not|unable|invalid|not supported|EAL:' |
		sed -E "s/$2/ADDRESS/g; s/$1/NAME/g; s/0x[0-9a-f]+/ADDRESS/g; s/fd [0-9]+/fd N/g; s/testpmd> .*//" | sort -u
}

# The process that is dpdk-testpmd itself: that which was started, or a child of it.
testpmd_of() {
	local candidate
	for candidate in "$1" $(pgrep -P "$1" || true); do
		[[ $(readlink "/proc/$candidate/exe") != */dpdk-testpmd ]] || { echo "$candidate" && return; }
	done
	die "process $1 has no dpdk-testpmd"
}

# ---------------------------------------------------------------- the parts of a run

launcher=("$run" --node "$node" --explain="$work/explained" --)
[[ $run != env ]] || launcher=()

# both_up PLAIN LAUNCHED: starts both, each on the card of that address.
both_up() {
	local who
	for who in plain launched; do
		rm -f "$work/$who."{in,out,log}
	done
	start plain "$1"
	start launched "$2" "${launcher[@]}"
	prompted plain
	prompted launched
	thread[plain]=$(worker "${pid[plain]}")
	thread[launched]=$(worker "$(testpmd_of "${pid[launched]}")")
}

# shown ADDRESS: what ioasidctl says of the one under ioasid-run.
shown() {
	local line
	[[ $run != env ]] || return 0
	"$ctl" --node "$node" --pid "$(testpmd_of "${pid[launched]}")" list >"$work/list"
	for line in '^ioasid=[0-9]+ state=ready parent=0 nr_devices=1 ' \
		'^mapping=0x[0-9a-f]+ size=[0-9]+ .* flags=READ,WRITE ioasid=' "^device=[0-9]+ name=$1 group="; do
		grep -Eq "$line" "$work/list" ||
			die "ioasidctl does not show what dpdk-testpmd has: $(cat "$work/list")"
	done
	ok "$memory: ioasidctl shows $(grep -c '^mapping=' "$work/list") mappings, $(grep '^ioasid=' "$work/list"); $(grep '^device=' "$work/list")"
}

# compared: has both send for the same time; their packets are then in $of_plain and $of_launched, and how
# often the supervisor has answered for a call meanwhile in $answered.
#
# The threads that send share one processor, in turns of a few milliseconds, so that a noisy machine
# takes from both alike.
compared() {
	tell plain start
	tell launched start
	answered=0
	[[ $run == env ]] || answered=$(answers "$work/explained")
	sleep 1
	sent plain && of_plain=-$packets busy_plain=-$busy
	sent launched && of_launched=-$packets busy_launched=-$busy
	sleep "$seconds"
	sent plain && of_plain=$((of_plain + packets)) busy_plain=$((busy_plain + busy))
	sent launched && of_launched=$((of_launched + packets)) busy_launched=$((busy_launched + busy))
	[[ $run == env ]] || answered=$(($(answers "$work/explained") - answered))
	tell plain stop
	tell launched stop
	((of_plain > 0 && of_launched > 0)) || die "plainly $of_plain packets are sent, under ioasid-run $of_launched"
}

# both_down PLAIN LAUNCHED: ends both, and compares what they have said.
both_down() {
	local who status fd
	for who in plain launched; do
		echo quit >&"${input[$who]}"
	done
	for who in plain launched; do
		status=0
		wait "${pid[$who]}" || status=$?
		# All that is left, without waiting for more.
		IFS= read -r -d '' -t 1 -u "${output[$who]}" said || true
		printf '%s\n' "$said" >>"$work/$who.log"
		((status == 0)) || die "$who ended with $status: ${said: -2000}"
		fd=${input[$who]} && exec {fd}>&-
		fd=${output[$who]} && exec {fd}>&-
	done
	pid=()
	complaints plain "$1" >"$work/plain.said"
	complaints launched "$2" >"$work/launched.said"
	diff "$work/plain.said" "$work/launched.said" >"$work/differs" ||
		die "they do not say the same: $(cat "$work/differs")"
}

# ---------------------------------------------------------------- the run

cards=("$2" "$3") ratios=()
for ((launch = 1; launch <= launches; launch++)); do
	both_up "${cards[@]}"
	if ((launch == 1)); then
		ok "$memory: both are up after $SECONDS s"
		shown "${cards[1]}"
		crosses launched plain
		crosses plain launched
		ok "$memory: what each sends is received by the other"
	fi
	compared
	ratios+=("$(awk "BEGIN { printf \"%.3f\", $of_launched / $of_plain }")")
	((answered == 0)) || die "the supervisor has answered for $answered calls while packets were sent"
	both_down "${cards[@]}"
	cards=("${cards[1]}" "${cards[0]}")
done
mean=$(printf '%s\n' "${ratios[@]}" | awk '{ sum += log($1) } END { printf "%.3f", exp(sum / NR) }')
echo "figures: $memory, one processor for both, $launches times $seconds s: packets under ioasid-run / plainly: ${ratios[*]}, mean $mean"
ok "$memory: no call was answered for while packets were sent; both have ended well, and said nothing" \
	"that the other did not say: $(wc -l <"$work/plain.said") lines"

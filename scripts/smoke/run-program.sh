#!/bin/sh
rule="under ioasid-run a program is as if it had been started directly: status, signals, identity, descriptors"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
IOASID_RUN=${IOASID_RUN:-$(program ioasid-run)}
run() { "$IOASID_RUN" --node "$IOASID_NODE" -- "$@"; }

# status EXPECTED PROGRAM...: what it ends with under ioasid-run.
status() {
	expected=$1 status=0
	shift
	run "$@" >"$work/output" 2>"$work/error" || status=$?
	equal "the status of $*" "$expected" "$status"
}

# same WHAT COMMAND: the shell says the same directly and under ioasid-run.
same() {
	directly=$(sh -c "$2" 2>&1)
	equal "$1" "$directly" "$(run sh -c "$2" 2>&1)"
	[ -n "$directly" ] || fail "$1: nothing was said"
}

run true || skip "ioasid-run cannot run a program here"

status 0 true
status 1 false
status 42 sh -c 'exit 42'
status 255 sh -c 'exit 255'
status 127 "$work/there-is-none"
: >"$work/no-program"
status 126 "$work/no-program"
grep -q . "$work/error" || fail "nothing says why a program was not started"

# A program that a signal ends is ended by it, not made to exit with a number; by others, or itself.
# shellcheck disable=SC2016 # perl's own variables
for signal in TERM KILL INT SEGV; do
	perl -e 'use Config; my %number; my @names = split " ", $Config{sig_name};
		@number{@names} = 0 .. $#names;
		my $status = system(@ARGV[1 .. $#ARGV]);
		exit(($status & 127) == $number{$ARGV[0]} ? 0 : 1)' \
		"$signal" "$IOASID_RUN" --node "$IOASID_NODE" -- sh -c "kill -$signal \$\$; sleep 10" ||
		fail "a program that SIG$signal ends is not ended by it"
done

# Whoever starts it has the program itself as his child: it can be signalled and waited for.
"$IOASID_RUN" --node "$IOASID_NODE" -- sleep 1000 &
child=$!
tries=0
until [ "$(cat "/proc/$child/comm")" = sleep ]; do
	tries=$((tries + 1))
	[ "$tries" -lt 200 ] || fail "process $child is $(cat "/proc/$child/comm") and not the program"
	sleep 0.05
done
kill -STOP "$child"
tries=0
until grep -q '^State:.*stopped' "/proc/$child/status"; do
	tries=$((tries + 1))
	[ "$tries" -lt 200 ] || fail "SIGSTOP does not stop the program"
	sleep 0.05
done
kill -CONT "$child"
kill -USR1 "$child"
status=0
wait "$child" 2>/dev/null || status=$?
equal "the status of a program that SIGUSR1 ended" 138 "$status"

# Input, output, arguments.
equal "what goes through" "in and out" "$(echo "in and out" | run cat)"
equal "arguments" "-- a  b '*'" "$(run printf '%s %s %s' -- 'a  b' "'*'")"
equal "standard error" out "$(run sh -c 'echo err >&2; echo out' 2>"$work/error")"
equal "standard error" err "$(cat "$work/error")"

# What the kernel keeps for a process.
# shellcheck disable=SC2016 # the other shell expands them
{
	same "user and groups" 'id'
	same "the directory" 'pwd'
	same "the file-creation mask" 'umask 027; umask'
	same "process group and session" 'ps -o pgid=,sid= -p $$'
	same "ignored and blocked signals" 'grep -E "^Sig(Blk|Ign)" /proc/self/status'
	same "limits" 'ulimit -a'
	same "open descriptors" 'exec 5</dev/null; ls /proc/self/fd'
	same "nice value" 'ps -o ni= -p $$'
}
env | grep -v '^_=' | sort >"$work/expected"
run env | grep -v '^_=' | sort >"$work/got"
diff "$work/expected" "$work/got" >&2 || fail "the environment differs"
(
	trap '' HUP
	equal "a signal that was ignored before" alive "$(run sh -c 'kill -HUP $$; echo alive')"
)

# Programs that start others, and leave some behind.
equal "children and exec" "3 here" "$(run sh -c '(exit 3); echo $? "$(exec echo here)"')"
run sh -c '(sleep 0.5; echo late >"$0/late") & exit 0' "$work"
tries=0
until [ -s "$work/late" ]; do
	tries=$((tries + 1))
	[ "$tries" -lt 100 ] || fail "what a program left behind did not go on"
	sleep 0.1
done

# Programs of other making: statically linked, Go with its own threads, Rust.
for program in "$tree/target/c/rfc-flows-static:1" "$tree/target/go/rfc-flows:2"; do
	[ -x "${program%:*}" ] || continue
	status "${program##*:}" "${program%:*}"
	grep -q usage: "$work/error" || fail "${program%:*} says: $(cat "$work/error")"
done
equal "a Rust program" "$("$IOASIDCTL" --version)" "$(run "$IOASIDCTL" --version)"

# It finds the node where programs expect it.
equal "an ability of the node" 1 "$(run "$IOASIDCTL" --node /dev/vfio/vfio check container)"
if [ -e /dev/ioasid ]; then
	equal "an ability of the node" 1 "$(run "$IOASIDCTL" --node /dev/ioasid check shared-memory)"
fi

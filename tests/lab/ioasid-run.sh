#!/bin/bash
# ioasid-run.sh: a program under ioasid-run is the process that it would be without.
set -euo pipefail

usage() {
	cat <<'END'
Usage: tests/lab/ioasid-run.sh IOASID-RUN ADDRESS-A GROUP-A ADDRESS-B GROUP-B

With the daemon running at /dev/ioasid, and two devices on vfio-pci that are alone in their groups:
exit status, signals, job control, descriptors, environment and what else a process inherits are as
without ioasid-run, as root and as an ordinary user; what cannot work is said before the program
starts; and tests/c/run-races passes, also as an ordinary user. Changes who owns the groups' nodes
and what the node's mode is. In the end Yama forbids all tracing, until the machine is started again.
Needs root.
END
}

(($# == 5)) || { usage >&2; exit 2; }
run=$(realpath "$1") a=$2 group_a=$3 b=$4 group_b=$5
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
races=${C_PROGRAMS:-$tree/target/c}/run-races
work=$(mktemp -d)
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
ok() { echo "ok: $*"; }
die() {
	echo "ioasid-run.sh: $*" >&2
	exit 1
}
user=(setpriv --reuid 1000 --regid 1000 --clear-groups)
ulimit -l unlimited

# same WHAT WITHOUT WITH
same() { [[ $2 == "$3" ]] || die "$1: without ioasid-run \"$2\", with it \"$3\""; }

# becomes WHAT EXPECTED COMMAND...: COMMAND gives that, in time.
becomes() {
	local what=$1 expected=$2 deadline=$((SECONDS + 20)) got=
	shift 2
	until got=$("$@") && [[ $got == "$expected" ]]; do
		((SECONDS < deadline)) || die "$what: \"$expected\" is expected, \"$got\" was found"
		sleep 0.1
	done
}
name_of() { cat "/proc/$1/comm"; }
state_of() { ps -o state= "$1" | xargs; }

# supervisors: how many there are, once those of programs that have ended are gone.
supervisors() { pgrep -cx ioasid-run || true; }
no_supervisor() {
	local deadline=$((SECONDS + 10))
	until (($(supervisors) == 0)); do
		((SECONDS < deadline)) || die "$1: a supervisor is left"
		sleep 0.1
	done
}

# What a process tells of itself, which is to be the same with and without.
facts() {
	cat <<'END'
echo "directory $PWD umask $(umask) arguments $0 $*"
echo "environment: $(env -0 | sort -z | grep -zv '^_=' | tr '\0' ' ')"
grep -E '^(Sig(Pnd|Blk|Ign)|ShdPnd|NoNewPrivs|Uid|Gid|CapInh|CapPrm|CapEff|CapAmb)' /proc/$$/status
echo "descriptors: $(cd /proc/$$/fd; ls | grep -vx 255 | xargs)"
echo "parent $(ps -o comm= $PPID) group $(ps -o pgid= $$ | tr -d ' ' | sed "s/^$$\$/own/") session $(ps -o sid= $$ | xargs)"
echo "children: $(cat /proc/$$/task/$$/children | wc -w) oom $(cat /proc/$$/oom_score_adj) nice $(nice)"
ulimit -a
END
}

as_if_started_directly() { # WHO COMMAND...: what COMMAND prefixes tells the same
	local who=$1 one two
	shift
	facts >"$work/facts"
	# Some descriptors more, closed standard input, a blocked, an ignored and a default signal.
	one=$(cd /usr && umask 027 && trap '' USR1 && A='b c' "$@" bash "$work/facts" 'x y' z 5</dev/null 7>/dev/null <&-)
	two=$(cd /usr && umask 027 && trap '' USR1 && A='b c' "$@" "$run" -- bash "$work/facts" 'x y' z 5</dev/null 7>/dev/null <&-)
	diff <(echo "$one") <(echo "$two") >"$work/difference" || die "$who: a program finds other circumstances: $(<"$work/difference")"
	ok "$who: circumstances are those of a direct start"
	for status in 0 1 77 255; do
		"$@" "$run" -- sh -c "exit $status" && got=0 || got=$?
		same "$who: exit status" "$status" "$got"
	done
	for signal in TERM KILL SEGV INT; do
		perl -e 'system @ARGV; printf "%d %d\n", $? & 127, $? >> 8' -- \
			"$@" "$run" -- sh -c "ulimit -c 0; kill -$signal \$\$" >"$work/with" 2>/dev/null
		perl -e 'system @ARGV; printf "%d %d\n", $? & 127, $? >> 8' -- \
			"$@" sh -c "ulimit -c 0; kill -$signal \$\$" >"$work/without" 2>/dev/null
		same "$who: end by $signal" "$(<"$work/without")" "$(<"$work/with")"
	done
	"$@" "$run" -- sleep 60 &
	local pid=$!
	becomes "$who: the process is the program" sleep name_of "$pid"
	kill -STOP $pid
	becomes "$who: stopped" T state_of "$pid"
	kill -CONT $pid
	kill -TERM $pid
	wait $pid && got=0 || got=$?
	same "$who: end by a signal from outside" 143 "$got"
	no_supervisor "$who"
	ok "$who: exit status and signals are the program's"
}

as_if_started_directly root
chmod 666 /dev/ioasid
chown 1000 "/dev/vfio/$group_a" "/dev/vfio/$group_b"
as_if_started_directly user "${user[@]}"
chown 0 "/dev/vfio/$group_a" "/dev/vfio/$group_b"

# Job control: the program is the foreground process of the terminal, and Ctrl-C reaches it alone.
for key in '\003 130' '\034 131'; do
	read -r byte status <<<"$key"
	got=0
	{ sleep 6; printf '%b' "$byte"; sleep 1; } |
		script -qec "bash -c 'ulimit -c 0; exec $run -- sleep 50'" /dev/null >"$work/out" 2>&1 || got=$?
	same "a key of the terminal" "$status" "$got"
done
{ sleep 2; printf '%s\n' "$run -- sleep 50"; sleep 6; printf '\032'; sleep 2; printf 'fg\n'; sleep 2; printf '\003'
	sleep 2; printf 'echo status $?\nexit\n'; sleep 1; } |
	script -qc "bash --norc --noediting -i" /dev/null >"$work/out" 2>&1 || true
for word in 'Stopped' 'status 130'; do
	grep -q "$word" "$work/out" || die "Ctrl-Z and fg: $(<"$work/out")"
done
ok "Ctrl-C, Ctrl-\\ and Ctrl-Z are the program's"

# A pipe that nobody reads kills the program as ever, and its end is not held up.
same "status of SIGPIPE" "141" "$(set +o pipefail; "$run" -- seq 1000000 2>/dev/null | true; echo "${PIPESTATUS[0]}")"
same "output" 3 "$(timeout 20 "$run" -- seq 3 | wc -l)"
ok "pipes behave"

# A program goes on in a child that outlives it, and so does the supervisor.
"$run" -- sh -c '(sleep 8) & exit 5' && got=0 || got=$?
same "exit status of a program that leaves a child" 5 "$got"
(($(supervisors) == 1)) || die "the supervisor does not stay with the child"
no_supervisor "after the child"
ok "the supervisor stays as long as any process of the program"

# What cannot work is said.
refused() { # STATUS WORDS COMMAND...
	local status=$1 words=$2 got=0
	shift 2
	"$@" >"$work/out" 2>&1 || got=$?
	if [[ $got != "$status" ]] || ! grep -q "$words" "$work/out"; then
		die "$*: status $got: $(<"$work/out")"
	fi
}
refused 125 'is the daemon running' "$run" --node /dev/nothing -- true
refused 125 'is not /dev/ioasid' "$run" --node /dev/null -- true
refused 125 'seccomp listener already' "$run" -- "$run" -- true
refused 127 'ENOENT' "$run" -- /nonexistent
refused 126 'EACCES' "$run" -- /etc/passwd
refused 125 'Usage' "$run"
[[ $("$run" --version) == ioasid-run* ]] || die "no version"
"$run" --help | grep -q 'Exit status' || die "no help"
old=$(</proc/sys/user/max_user_namespaces)
echo 0 >/proc/sys/user/max_user_namespaces
refused 125 'max_user_namespaces' "${user[@]}" "$run" -- true
echo "$old" >/proc/sys/user/max_user_namespaces
cp /bin/true "$work/setuid"
chmod 4755 "$work/setuid"
refused 0 'set-user-ID' "${user[@]}" "$run" -- "$work/setuid"
chmod 600 /dev/ioasid
refused 125 'may not open it' "${user[@]}" "$run" -- true
chmod 666 /dev/ioasid
ok "what cannot work is said before the program starts"

# A device that the user may not open, he does not get.
refused 2 'Permission denied' "${user[@]}" "$run" -- sh -c "exec 5<>/dev/vfio/devices/$a"
refused 2 'Permission denied' "$run" -- "${user[@]}" sh -c "exec 5<>/dev/vfio/devices/$a"
ok "who may not open the group may not open the device"

tests=(arguments duplicates groups races killed)
[[ -z ${TESTS:-} ]] || read -ra tests <<<"$TESTS"
timeout 120 "$run" --explain="$work/calls" -- "$races" "$a" "$group_a" "$b" "$group_b" "${tests[@]}" ||
	die "root: run-races failed; $(tail -n 5 "$work/calls")"
grep -q 'BIND_IOASID_FD.*EBADF: descriptor 1000 is not open' "$work/calls" || die "--explain does not tell why"
timeout 60 "$run" -- "$races" "$a" "$group_a" "$b" "$group_b" orphaned
chown 1000 "/dev/vfio/$group_a" "/dev/vfio/$group_b"
timeout 120 "${user[@]}" "$run" -- "$races" "$a" "$group_a" "$b" "$group_b" "${tests[@]}"
timeout 60 "${user[@]}" "$run" -- "$races" "$a" "$group_a" "$b" "$group_b" orphaned
no_supervisor "in the end"
scope=/proc/sys/kernel/yama/ptrace_scope
if [[ -e $scope ]]; then
	for value in 1 2; do
		echo $value >$scope
		timeout 60 "${user[@]}" "$run" -- "$races" "$a" "$group_a" "$b" "$group_b" duplicates
	done
	echo 3 >$scope
	refused 125 'ptrace_scope is 3' "$run" -- true
	ok "with Yama's ptrace_scope 1 and 2 all works, and 3 is told of"
fi

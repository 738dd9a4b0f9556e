#!/bin/sh
rule="a program under ioasid-run has the terminal: Ctrl-C ends it, Ctrl-Z stops it, and the shell goes on with it"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
IOASID_RUN=${IOASID_RUN:-$(program ioasid-run)}
"$IOASID_RUN" --node "$IOASID_NODE" -- true || skip "ioasid-run cannot run a program here"
command -v script >/dev/null || skip "this takes script(1)"

# A shell with a terminal of its own; what is written to descriptor 8 is typed there.
mkfifo "$work/keys"
: >"$work/screen"
# (A shell has what it puts into the background ignore SIGINT.)
env --default-signal script -qfec "TERM=dumb PS1='ready> ' bash --norc --noprofile -i" "$work/screen" <"$work/keys" >/dev/null 2>&1 &
terminal=$!
trap 'kill "$terminal" 2>/dev/null || true; clean_up' EXIT
exec 8>"$work/keys"

# shellcheck disable=SC2059 # the keys are escapes
type() { printf "$1" >&8; }

# shows TEXT: waits until a line of the screen is this. What is typed is echoed, so that no line that
# is waited for must be typed as it is.
shows() {
	tries=0
	until tr -d '\r' <"$work/screen" | grep -qE "$1"; do
		tries=$((tries + 1))
		[ "$tries" -lt 200 ] || fail "the screen does not show \`$1': $(tail -n 20 "$work/screen")"
		sleep 0.1
	done
}

start="$IOASID_RUN --node $IOASID_NODE --"
shows 'ready> '

# It is on the terminal, and in the foreground.
type "$start sh -c 'tty >/dev/null && echo terminal-\$((6 * 7)); ps -o stat= -p \$\$ | tr -d \"\\\\n\"; echo =state'\n"
shows '^terminal-42$'
shows '\+=state$'

type "$start sh -c 'echo wait-\$((1 + 1)); exec sleep 1000'\n"
shows '^wait-2$'
type '\003'
type 'echo "status-$?"\n'
shows '^status-130$'

type "$start sh -c 'echo wait-\$((1 + 2)); exec sleep 1000'\n"
shows '^wait-3$'
type '\032'
shows 'Stopped '
type 'kill -TERM %%1; fg; echo "then-$?"\n'
shows '^then-143$'

# A program that reads, and meets the end of its input.
type "$start sh -c 'read line; echo \"\$line-\$line\"; cat; echo end-\$((7 * 7))'\n"
type 'word\n'
shows '^word-word$'
type '\004'
shows '^end-49$'

type 'exit 5\n'
status=0
wait "$terminal" || status=$?
equal "the status of the shell" 5 "$status"

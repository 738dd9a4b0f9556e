#!/bin/sh
rule="a context can be looked at from another process: its IOASIDs, mappings and devices, all of them"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

# A program with the node open, which is told what to do by the test.
exec 7<>"$IOASID_NODE"
sleep 1000 &
other=$!
exec 7>&-
several=''
trap 'kill "$other" $several 2>/dev/null || true; clean_up' EXIT
of() { env -u IOASID_FD "$IOASIDCTL" --pid "$@"; }

equal "a context with nothing in it" "fd=7" "$(of "$other" list)"
id=$(of "$other:7" alloc)
equal "an IOASID without a device" "fd=7
ioasid=$id state=unused" "$(of "$other" list)"

# What is done on its descriptor is done in its context.
case $kind in
simulated)
	name=${devices%% *} device=$(of "$other" bind --simulated "${devices%% *}")
	;;
vfio)
	first=${devices%% *}
	name=${first%:*}
	device=$(of "$other" bind --vfio-group "/dev/vfio/${first##*:}" "$name")
	;;
esac
of "$other" attach "$device" "$id"
of "$other" map "$id" --iova 0x10000 --map-file "$(buffer page)"
listed=$(of "$other" list)
case $listed in
"fd=7
ioasid=$id state=ready parent=0 nr_devices=1 nr_children=0 nr_mappings=1 mapped_bytes=4096 locked_bytes=4096
mapping=0x10000 size=4096 vaddr=0x0 flags=READ,WRITE,FILE ioasid=$id
device=$device name=$name group="*" ioasid=$id cookie=0x0") ;;
*) fail "the context is listed as: $listed" ;;
esac
json=$(of "$other" --json list)
case $json in
*'"fd":7'*'"iova":"0x10000"'*) ;;
*) fail "the context is, in JSON: $json" ;;
esac

# More than are listed in one call, with a hole after each so that none is one with the next.
n=0
while [ "$n" -lt 1500 ]; do
	printf 'map-file rw %d 4096 0 %s\n' $((0x1000000 + n * 8192)) "$work/page"
	n=$((n + 1))
done >"$work/maps"
equal "mappings made" 1500 "$(of "$other" vector "$id" "$work/maps")"
of "$other" list | sed -n 's/^mapping=\([^ ]*\) .*/\1/p' >"$work/listed"
equal "mappings listed" 1501 "$(wc -l <"$work/listed")"
equal "different ones" 1501 "$(sort -u "$work/listed" | wc -l)"
equal "the last" 0x1bb6000 "$(tail -n 1 "$work/listed")"

# A program with several opens is shown with each; for other commands one has to be named.
(
	exec 8<>"$IOASID_NODE" 9<>"$IOASID_NODE"
	exec sleep 1000
) &
several=$!
tries=0
until [ "$(of "$several" list 2>/dev/null)" = "fd=8
fd=9" ]; do
	tries=$((tries + 1))
	[ "$tries" -lt 100 ] || fail "two opens are listed as: $(of "$several" list 2>&1)"
	sleep 0.1
done
status=0
of "$several" alloc 2>"$work/error" || status=$?
equal "the status when it is not clear which is meant" 2 "$status"
grep -q -- "--pid $several:8, --pid $several:9" "$work/error" ||
	fail "it does not say which there are: $(cat "$work/error")"
equal "an IOASID of the one that is named" 1 "$(of "$several:9" alloc)"
kill "$several"

# What cannot be looked at says why.
status=0
of "$other:99" list 2>"$work/error" || status=$?
equal "the status of a descriptor that is not open" 3 "$status"
grep -q "descriptor 99 of process $other is not open" "$work/error" || fail "$(cat "$work/error")"
kill "$other"
wait "$other" 2>/dev/null || true
status=0
of "$other" list 2>"$work/error" || status=$?
equal "the status when the process is gone" 3 "$status"
grep -q "no such process" "$work/error" || fail "$(cat "$work/error")"

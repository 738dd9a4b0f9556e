#!/bin/sh
rule="an IOASID is a positive number of one open; when it is freed it is unknown and others stay"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
first=$(ctl alloc)
second=$(ctl alloc)
[ "$first" -gt 0 ] || fail "not positive: $first"
[ "$second" -gt 0 ] || fail "not positive: $second"
[ "$first" != "$second" ] || fail "the same number twice: $first"

device=$(bind_device 7 1)
ctl attach "$device" "$second"
refused EBUSY ctl free "$second"

ctl free "$first"
refused ENOENT ctl free "$first"
refused ENOENT ctl info "$first"
equal "the other IOASID" "$second" "$(ctl info "$second" --field ioasid)"

ctl detach "$device" "$second"
ctl free "$second"
refused ENOENT ctl attach "$device" "$second"

#!/bin/sh
rule="closing the last descriptor of an open takes back all of it, and its devices can be bound again"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

page=$(buffer page)
exec 7<>"$IOASID_NODE"
device=$(bind_device 7 1)
id=$(ctl alloc)
ctl attach "$device" "$id"
ctl map "$id" --iova 0x10000 --file "$page"

# A duplicate keeps the open alive, whoever holds it.
exec 8>&7
exec 7>&-
equal "mappings by the duplicate" 1 "$(ctl8 info "$id" --field nr_mappings)"
exec 8>&-

# A FUSE file is released a moment after close has returned.
exec 7<>"$IOASID_NODE"
tries=0
until device=$(bind_device 7 1 2>"$work/error"); do
	tries=$((tries + 1))
	[ "$tries" -lt 50 ] || fail "the device was not given back: $(cat "$work/error")"
	sleep 0.1
done

refused ENOENT ctl info "$id"
id=$(ctl alloc)
ctl attach "$device" "$id"
equal "mappings of the new open" 0 "$(ctl info "$id" --field nr_mappings)"
if [ "$kind" = simulated ]; then
	refused EIO ctl sim-dma read "$device" --iova 0x10000 --size 1
fi

# Giving back one by one works as well.
refused EBUSY ctl unbind "$device"
ctl detach "$device" "$id"
ctl unbind "$device"
refused ENOENT ctl device-info "$device"
bind_device 7 1 >/dev/null

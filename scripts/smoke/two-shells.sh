#!/bin/sh
rule="two opens of the node share nothing: neither numbers nor devices nor addresses"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_devices 2

exec 7<>"$IOASID_NODE"
exec 8<>"$IOASID_NODE"
device=$(bind_device 7 1)
id=$(ctl alloc)
ctl attach "$device" "$id"
page=$(buffer page)
ctl map "$id" --iova 0x10000 --file "$page"

refused ENOENT ctl8 info "$id"
refused ENOENT ctl8 free "$id"
refused ENOENT ctl8 unmap "$id" --all
refused ENOENT ctl8 device-info "$device"
refused ENOENT ctl8 unbind "$device"
refused ENOENT ctl8 attach "$device" "$id"

# A device has one owner. (A VFIO group cannot even be opened twice: that is the kernel's word.)
if [ "$kind" = simulated ]; then
	refused EBUSY bind_device 8 1
else
	! bind_device 8 1 2>/dev/null || fail "the group was bound twice"
fi

# The same address in both is not the same place.
other_device=$(bind_device 8 2)
other_id=$(ctl8 alloc)
ctl8 attach "$other_device" "$other_id"
other_page=$(buffer other)
ctl8 map "$other_id" --iova 0x10000 --file "$other_page"
if [ "$kind" = simulated ]; then
	ctl sim-dma write "$device" --iova 0x10000 --text seven >/dev/null
	ctl8 sim-dma write "$other_device" --iova 0x10000 --text eight >/dev/null
	equal "what 7 wrote" seven "$(head -c 5 "$page")"
	equal "what 8 wrote" eight "$(head -c 5 "$other_page")"
fi

equal "bytes unmapped in 8" 4096 "$(ctl8 unmap "$other_id" --all)"
equal "mappings of 7" 1 "$(ctl info "$id" --field nr_mappings)"
exec 8>&-
equal "mappings of 7 after the end of 8" 1 "$(ctl info "$id" --field nr_mappings)"

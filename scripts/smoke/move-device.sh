#!/bin/sh
rule="a device that is attached to another IOASID sees what that one maps, and nothing of the first"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
device=$(bind_device 7 1)
left=$(ctl alloc)
right=$(ctl alloc)
printf left >"$work/left"
printf right >"$work/right"
truncate -s 4096 "$work/left" "$work/right"

# sees TEXT: what the device finds at 0x10000, if it can be asked.
sees() {
	[ "$kind" = simulated ] || return 0
	equal "what the device sees" "$1" "$(ctl sim-dma read "$device" --iova 0x10000 --size 8 --text)"
}
faults() {
	[ "$kind" = simulated ] || return 0
	refused EIO ctl sim-dma read "$device" --iova "$1" --size 1
}

ctl attach "$device" "$left"
ctl map "$left" --iova 0x10000 --file "$work/left" --read
ctl map "$left" --iova 0x20000 --file "$work/left" --read
sees left

refused EBUSY ctl attach "$device" "$right"
refused ENOENT ctl detach "$device" "$right"
sees left

ctl detach "$device" "$left"
equal "the device's IOASID while detached" 0 "$(ctl device-info "$device" --field ioasid)"
faults 0x10000

ctl attach "$device" "$right"
equal "the device's IOASID" "$right" "$(ctl device-info "$device" --field ioasid)"
faults 0x10000
ctl map "$right" --iova 0x10000 --file "$work/right" --read
sees right
faults 0x20000

# Back: the mappings were kept, and are made again. Those that changed meanwhile, as they are now.
equal "bytes unmapped while away" 4096 "$(ctl unmap "$left" --iova 0x20000 --size 4K)"
ctl map "$left" --iova 0x30000 --file "$work/left" --read
ctl detach "$device" "$right"
ctl attach "$device" "$left"
sees left
faults 0x20000
[ "$kind" != simulated ] ||
	equal "mapped while away" left "$(ctl sim-dma read "$device" --iova 0x30000 --size 8 --text)"
equal "mappings of the first" 2 "$(ctl info "$left" --field nr_mappings)"
equal "mappings of the second" 1 "$(ctl info "$right" --field nr_mappings)"

#!/bin/sh
rule="a device writes only where it was given leave to, and leave is never more than the program's own"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
id=$(ctl alloc)
device=$(bind_device 7 1)
ctl attach "$device" "$id"
printf original >"$work/page"
truncate -s 4096 "$work/page"

refused EPERM ctl map "$id" --iova 0x10000 --file "$work/page" --protection r --write
refused EPERM ctl map "$id" --iova 0x10000 --file "$work/page" --protection r --read --write
equal "mappings after refusals" 0 "$(ctl info "$id" --field nr_mappings)"
refused EINVAL ctl raw map-dma ioasid="$id" flags=0 iova=0x10000 vaddr=0x10000 size=4K

ctl map "$id" --iova 0x10000 --file "$work/page" --read
if [ "$kind" = simulated ]; then
	refused EIO ctl sim-dma write "$device" --iova 0x10000 --text changed
	equal "the file" original "$(head -c 8 "$work/page")"
	equal "what the device reads" original \
		"$(ctl sim-dma read "$device" --iova 0x10000 --size 8 --text)"

	ctl map "$id" --iova 0x20000 --file "$work/page" --write
	refused EIO ctl sim-dma read "$device" --iova 0x20000 --size 8
	ctl sim-dma write "$device" --iova 0x20000 --text changed! >/dev/null
	equal "the file after a write that was allowed" changed! "$(head -c 8 "$work/page")"
fi

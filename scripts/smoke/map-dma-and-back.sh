#!/bin/sh
rule="what a device writes through its mapping is in the program's file, and what the file holds is read by the device"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_simulated

exec 7<>"$IOASID_NODE"
id=$(ctl alloc)
device=$(bind_device 7 1)
ctl attach "$device" "$id"
page=$(buffer page)

refused EIO ctl sim-dma write "$device" --iova 0x10000 --text "too early"
ctl map "$id" --iova 0x10000 --file "$page"

equal "bytes written" 5 "$(ctl sim-dma write "$device" --iova 0x10010 --text hello)"
equal "the file" hello "$(dd if="$page" bs=1 skip=16 count=5 2>/dev/null)"

printf world | dd of="$page" bs=1 seek=32 conv=notrunc 2>/dev/null
equal "what the device reads" world "$(ctl sim-dma read "$device" --iova 0x10020 --size 5 --text)"
equal "the same in hexadecimal" 776f726c64 "$(ctl sim-dma read "$device" --iova 0x10020 --size 5)"

# A whole page of bytes, there and back.
head -c 4096 /dev/urandom >"$work/random"
equal "bytes written" 4096 "$(ctl sim-dma write "$device" --iova 0x10000 --file "$work/random")"
cmp "$page" "$work/random" || fail "the file is not what the device wrote"
ctl sim-dma read "$device" --iova 0x10000 --size 4K --file "$work/back"
cmp "$work/back" "$work/random" || fail "the device reads other bytes than the file has"

# The end of the mapping is the end of what it reaches.
status=0
done=$(ctl sim-dma read "$device" --iova 0x10ffc --size 8 --json 2>&1) || status=$?
equal "status of a read across the end" 1 "$status"
case $done in
*'"done":4'*) ;;
*) fail "4 bytes lie before the end: $done" ;;
esac
equal "bytes unmapped" 4096 "$(ctl unmap "$id" --iova 0x10000 --size 4K)"
refused EIO ctl sim-dma read "$device" --iova 0x10000 --size 1

#!/bin/sh
rule="private memory is mapped for devices as it is; when its process ends it is kept or missed, never other memory"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
[ "$(ctl check private-memory)" = 1 ] || skip "this node does not map private memory"
id=$(ctl alloc)
device=$(bind_device 7 1)
ctl attach "$device" "$id"
printf original >"$work/page"
truncate -s 4096 "$work/page"

# hold ARGUMENT...: maps in a process that lives until release.
mkfifo "$work/in" "$work/out"
hold() {
	ctl map "$id" --hold "$@" <"$work/in" >"$work/out" 8>&- &
	holder=$!
	exec 8>"$work/in"
	read -r address <"$work/out" || fail "it was not mapped: map $*"
}
release() {
	exec 8>&-
	wait "$holder" || fail "the process that held the memory ended with $?"
}

# A private copy of the file: what the device writes is in the copy only.
hold --iova 0x10000 --private --file "$work/page"
case $address in
0x*000) ;;
*) fail "no address of a page: $address" ;;
esac
if [ "$kind" = simulated ]; then
	equal "what the device reads" original \
		"$(ctl sim-dma read "$device" --iova 0x10000 --size 8 --text)"
	equal "bytes written" 8 "$(ctl sim-dma write "$device" --iova 0x10000 --text changed!)"
	equal "what the device reads back" changed! \
		"$(ctl sim-dma read "$device" --iova 0x10000 --size 8 --text)"
fi
equal "the file" original "$(head -c 8 "$work/page")"
release

# The process has ended. Its mapping is there until somebody unmaps it.
equal "mappings" 1 "$(ctl info "$id" --field nr_mappings)"
equal "bytes charged" 4096 "$(ctl info "$id" --field locked_bytes)"
ctl detach "$device" "$id"
if [ "$kind" = simulated ]; then
	ctl attach "$device" "$id"
	refused EIO ctl sim-dma read "$device" --iova 0x10000 --size 8
	refused EIO ctl sim-dma write "$device" --iova 0x10000 --text changed!
else
	# A table that held it has let it go, and nobody can pin it again.
	refused EFAULT ctl attach "$device" "$id"
fi
equal "bytes unmapped" 4096 "$(ctl unmap "$id" --all)"
[ "$kind" = simulated ] || ctl attach "$device" "$id"

# What it may only be read for is not written.
hold --iova 0x10000 --private --file "$work/page" --read
if [ "$kind" = simulated ]; then
	refused EIO ctl sim-dma write "$device" --iova 0x10000 --text changed!
	equal "what the device reads" original \
		"$(ctl sim-dma read "$device" --iova 0x10000 --size 8 --text)"
fi
release
refused EPERM ctl map "$id" --iova 0x20000 --private --size 4K --protection r --write

# Many pages that nobody has touched are there, and zero.
hold --iova 0x100000 --private --size 4M
[ "$kind" != simulated ] || equal "the last bytes" 0000000000000000 \
	"$(ctl sim-dma read "$device" --iova 0x4ffff8 --size 8)"
release

# Memory that nobody has is another matter.
refused EFAULT ctl map "$id" --iova 0x1000000 --vaddr 0x10000 --size 4K
equal "mappings at the end" 2 "$(ctl info "$id" --field nr_mappings)"

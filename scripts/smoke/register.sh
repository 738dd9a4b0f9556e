#!/bin/sh
rule="registered memory is its process's and charged once; while there is any, no other memory of programs is mapped"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
[ "$(ctl check register-memory)" = 1 ] || skip "this node cannot pin memory for registering it"
id=$(ctl alloc)
device=$(bind_device 7 1)
ctl attach "$device" "$id"
page=$(buffer page)
ctl map "$id" --iova 0x10000 --file "$page"

# What cannot be registered changes nothing.
refused EINVAL ctl register --memfd --size 0
refused EINVAL ctl register --memfd --size 100
refused EFAULT ctl register --vaddr 0x10000 --size 4K
refused EPERM ctl register --file "$page" --protection r
refused EOVERFLOW ctl register --vaddr 0xfffffffffffff000 --size 8K
refused ENOENT ctl unregister --vaddr 0x10000 --size 4K
explained 0x10000
refused EINVAL ctl unregister --vaddr 0x10001 --size 4K
ctl map "$id" --iova 0x20000 --file "$page"

# A mapping that is refused takes its registration back with it.
refused EEXIST ctl map "$id" --iova 0x20000 --memfd --size 4K --register
ctl map "$id" --iova 0x30000 --file "$page"
equal "bytes charged" 12288 "$(ctl info "$id" --field locked_bytes)"

# Registered and mapped by one process: charged as registered, not as mapped.
ctl map "$id" --iova 0x40000 --file "$page" --register
equal "mappings" 4 "$(ctl info "$id" --field nr_mappings)"
equal "bytes charged for mappings" 12288 "$(ctl info "$id" --field locked_bytes)"
if [ "$kind" = simulated ]; then
	ctl sim-dma write "$device" --iova 0x40000 --text registered >/dev/null
	equal "the file" registered "$(head -c 10 "$page")"
fi

# That process has ended, but not its registration: all else is now shut out, except files.
refused EFAULT ctl map "$id" --iova 0x50000 --file "$page"
explained registered
refused EFAULT ctl map "$id" --iova 0x50000 --memfd --size 4K
ctl map "$id" --iova 0x50000 --memfd --size 4K --register
[ "$(ctl check file-memory)" = 0 ] || ctl map "$id" --iova 0x60000 --map-file "$page"
ctl register --memfd --size 64K
[ "$(ctl check private-memory)" = 0 ] || ctl register --private --size 64K

# What was mapped before stays as it is, and can be unmapped.
equal "bytes unmapped" 4096 "$(ctl unmap "$id" --iova 0x10000 --size 4K)"
equal "bytes unmapped" 4096 "$(ctl unmap "$id" --iova 0x40000 --size 4K)"

# The next open of the node knows nothing of it.
exec 8<>"$IOASID_NODE"
exec 7>&-
tries=0
until device=$(bind_device 8 1 2>"$work/error"); do
	tries=$((tries + 1))
	[ "$tries" -lt 50 ] || fail "the device was not given back: $(cat "$work/error")"
	sleep 0.1
done
id=$(ctl8 alloc)
ctl8 attach "$device" "$id"
ctl8 map "$id" --iova 0x10000 --file "$page"

#!/bin/sh
rule="DMA with a PASID goes where that PASID was attached, or where a PASID table leads; real devices refuse both"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
device=$(bind_device 7 1)
parent=$(ctl alloc)
ctl attach "$device" "$parent"
child=$(ctl nest "$parent")
other=$(ctl alloc)

if [ "$kind" = vfio ]; then
	ctl attach "$device" "$child"
	refused EOPNOTSUPP ctl attach "$device" "$other" --pasid 3
	explained PASID
	refused EOPNOTSUPP ctl bind-pasids "$child" --format vtd --address 0x100000 --bits 6
	explained PASID
	equal "formats for real devices" "" "$(ctl info "$child" --field pasid_formats)"
	exit 0
fi

# sees PASID IOVA TEXT and faults PASID IOVA
sees() {
	equal "what PASID $1 sees at $2" "$3" \
		"$(ctl sim-dma read "$device" --pasid "$1" --iova "$2" --size 16 --text)"
}
faults() { refused EIO ctl sim-dma read "$device" --pasid "$1" --iova "$2" --size 1; }

memory=$work/memory
truncate -s 64K "$memory"
printf first | dd of="$memory" bs=1 seek=$((0x8000)) conv=notrunc 2>/dev/null
printf second | dd of="$memory" bs=1 seek=$((0x9000)) conv=notrunc 2>/dev/null
base=0x100000
ctl map "$parent" --iova $base --map-file "$memory"

# Each PASID is attached by itself.
ctl attach "$device" "$other" --pasid 3
ctl map "$other" --iova 0x5000 --map-file "$memory" --offset 0x9000 --size 4K
sees 3 0x5000 second
faults 4 0x5000
refused EIO ctl sim-dma read "$device" --iova 0x5000 --size 1
refused EBUSY ctl attach "$device" "$parent" --pasid 3
refused EINVAL ctl attach "$device" "$other" --pasid 0x100000
refused ENOENT ctl detach "$device" "$parent" --pasid 3
refused EBUSY ctl unbind "$device"
ctl detach "$device" "$other" --pasid 3
faults 3 0x5000

# A PASID table: tables by their offset in the file.
points() { entry "$memory" "$1" $((base + $2 | $3)); }
ctl attach "$device" "$child"

# An x86 page table at 0x1000 that maps 0x10000 to the first page of data.
points 0x1000 0x2000 7
points 0x2000 0x3000 7
points 0x3000 0x4000 7
points 0x4080 0x8000 7
# VT-d: the directory at 0, a table at 0x5000; 5 has the page table, 6 passes through.
points 0x0000 0x5000 1
entry "$memory" 0x5140 0x41
points 0x5150 0x1000 0
entry "$memory" 0x5180 0x101
ctl bind-pasids "$child" --format vtd-scalable --address $base --bits 8
equal "the format" vtd-scalable "$(ctl info "$child" --field format)"
equal "the place" $base "$(ctl info "$child" --field format_addr)"
case ,$(ctl info "$child" --field flags), in
*,PASID_TABLE,*) ;;
*) fail "there is no flag PASID_TABLE" ;;
esac
sees 5 0x10000 first
faults 5 0x11000
sees 6 0x109000 second
faults 7 0x10000
refused EIO ctl sim-dma read "$device" --iova 0x10000 --size 1

# What was read is used until it is invalidated.
points 0x4080 0x9000 7
entry "$memory" 0x5180 0
sees 5 0x10000 first
ctl invalidate "$child" --pasid 5
sees 5 0x10000 second
sees 6 0x109000 second
ctl invalidate "$child"
faults 6 0x109000
sees 5 0x10000 second

refused EBUSY ctl bind-pasids "$child" --format vtd --address $base --bits 8
refused EBUSY ctl map "$child" --iova 0x1000 --parent-address $base --size 4K
refused EBUSY ctl bind-table "$child" --format x86-4level --address 0x101000
refused ENOENT ctl unbind-table "$child"
ctl unbind-pasids "$child"
refused ENOENT ctl unbind-pasids "$child"
faults 5 0x10000

# Arm: context descriptors in a row, with a page table of Arm's.
points 0x1000 0x2000 3
points 0x2000 0x3000 3
points 0x3000 0x4000 3
points 0x4080 0x8000 0x443
entry "$memory" 0x6040 0x20080000010
points 0x6048 0x1000 0
ctl bind-pasids "$child" --format arm-cd --address 0x106000 --bits 4
sees 1 0x10000 first
faults 0 0x10000
faults 2 0x10000

refused EINVAL ctl bind-pasids "$parent" --format vtd --address $base --bits 8
ctl unbind-pasids "$child"
refused EINVAL ctl bind-pasids "$child" --format vtd --address $base --bits 21
refused EINVAL ctl bind-pasids "$child" --format vtd --address 0x100040 --bits 8
refused EOPNOTSUPP ctl raw bind-pasid-table ioasid="$child" format=9 addr=$base pasid_bits=8

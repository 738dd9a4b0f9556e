#!/bin/sh
rule="a child translates by the page table that the program wrote, in every format, as it was when it was bound or invalidated"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
[ "$(ctl check user-page-table)" = 1 ] || skip "this node does not walk page tables"
device=$(bind_device 7 1)
parent=$(ctl alloc)
ctl attach "$device" "$parent"
child=$(ctl nest "$parent")
ctl attach "$device" "$child"

# The parent shows a file: tables in its first pages, behind them two pages of data.
memory=$work/memory
truncate -s 64K "$memory"
printf first | dd of="$memory" bs=1 seek=$((0x8000)) conv=notrunc 2>/dev/null
printf second | dd of="$memory" bs=1 seek=$((0x9000)) conv=notrunc 2>/dev/null
base=0x100000
ctl map "$parent" --iova $base --map-file "$memory"

# Entries by their offset in the file, and what they lead to by its own.
points() { entry "$memory" "$1" $((base + $2 | $3)); }
sees() {
	[ "$kind" = simulated ] || return 0
	equal "what the device sees at $1" "$2" "$(ctl sim-dma read "$device" --iova "$1" --size 16 --text)"
}
faults() {
	[ "$kind" = simulated ] || return 0
	refused EIO ctl sim-dma read "$device" --iova "$1" --size 1
}
bind() { ctl bind-table "$child" --address $base "$@"; }

# IOVA 0x10000 is entry 16 of the last table. Four levels, each with the bits of its format.
for format in \
	'x86-4level 7 7 7 7' \
	'vtd-second 3 3 3 3' \
	'amd-v1 0x6000000000000601 0x6000000000000401 0x6000000000000201 0x6000000000000001' \
	'arm-lpae-4k 3 3 3 0x443'; do
	# shellcheck disable=SC2086 # the list is split on purpose
	set -- $format
	points 0x0000 0x1000 "$2"
	points 0x1000 0x2000 "$3"
	points 0x2000 0x3000 "$4"
	points 0x3080 0x8000 "$5"
	case ,$(ctl info "$child" --field formats), in
	*",$1,"*) ;;
	*) fail "$1 is not among the formats that can be bound" ;;
	esac
	bind --format "$1" --width 48
	equal "the format" "$1" "$(ctl info "$child" --field format)"
	equal "the root" $base "$(ctl info "$child" --field format_addr)"
	equal "the leaves" 1 "$(ctl info "$child" --field nr_mappings)"
	sees 0x10000 first
	faults 0x11000
	ctl unbind-table "$child"
	equal "the format of none" none "$(ctl info "$child" --field format)"
	faults 0x10000
done

# Another table of the last format but one entry, and what is seen of changes.
points 0x0000 0x1000 7
points 0x1000 0x2000 7
points 0x2000 0x3000 7
points 0x3080 0x8000 7
bind --format x86-4level
points 0x3080 0x9000 7
points 0x3088 0x8000 5
sees 0x10000 first
faults 0x11000
ctl invalidate "$child" --iova 0x11000 --size 4K
sees 0x10000 first
sees 0x11000 first
ctl invalidate "$child"
sees 0x10000 second
if [ "$kind" = simulated ]; then
	ctl sim-dma write "$device" --iova 0x10000 --text changed >/dev/null
	equal "what the device wrote" changed "$(tail -c +36865 "$memory" | head -c 7)"
	refused EIO ctl sim-dma write "$device" --iova 0x11000 --text read-only
fi

# An entry that leads out of the parent is a hole, until the parent maps something there.
points 0x3090 0x400000 7
ctl invalidate "$child" --iova 0x12000 --size 4K
faults 0x12000
ctl map "$parent" --iova 0x500000 --map-file "$memory" --offset 0x8000 --size 4K
sees 0x12000 first
ctl unmap "$parent" --iova 0x500000 --size 4K >/dev/null
faults 0x12000

# A table that leads to itself ends; one that is all garbage is all holes.
points 0x0000 0 7
ctl invalidate "$child" || refused ENOSPC ctl invalidate "$child"
head -c 4096 /dev/urandom | dd of="$memory" conv=notrunc 2>/dev/null
ctl invalidate "$child" || refused ENOSPC ctl invalidate "$child"
entry "$memory" 0 0
ctl unbind-table "$child"

# What is wrong.
refused ENOENT ctl unbind-table "$child"
refused EINVAL ctl invalidate "$child"
refused EINVAL ctl bind-table "$parent" --format x86-4level --address $base
refused EINVAL bind --format x86-4level --width 39
refused EINVAL ctl bind-table "$child" --format x86-4level --address 0x100008
refused EFAULT ctl bind-table "$child" --format x86-4level --address 0x900000
explained 0x900000
refused EOPNOTSUPP ctl raw bind-pgtable ioasid="$child" format=99 addr=$base addr_width=48
ctl map "$child" --iova 0x1000 --parent-address $base --size 4K
refused EBUSY bind --format x86-4level
ctl unmap "$child" --all >/dev/null
bind --format x86-4level
refused EBUSY bind --format x86-4level
refused EBUSY ctl map "$child" --iova 0x1000 --parent-address $base --size 4K
refused EBUSY ctl unmap "$child" --all
refused EINVAL ctl raw invalidate-cache ioasid="$child" flags=1 iova=0 size=4K
refused EOVERFLOW ctl invalidate "$child" --iova 0xfffffffffffff000 --size 8K

#!/bin/sh
rule="what a device reaches through a child is what child and parents map in common, now and after either changes"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
[ "$(ctl check nesting)" = 1 ] || skip "this node does not nest"
device=$(bind_device 7 1)
parent=$(ctl alloc)
refused ENODEV ctl nest "$parent"
ctl attach "$device" "$parent"
file=$work/file
printf first >"$file"
truncate -s 4096 "$file"
printf second >>"$file"
truncate -s 8192 "$file"

# sees IOVA TEXT and faults IOVA: what the device finds, if it can be asked.
sees() {
	[ "$kind" = simulated ] || return 0
	equal "what the device sees at $1" "$2" "$(ctl sim-dma read "$device" --iova "$1" --size 16 --text)"
}
faults() {
	[ "$kind" = simulated ] || return 0
	refused EIO ctl sim-dma read "$device" --iova "$1" --size 1
}
# written IOVA TEXT: the device writes, and may.
written() {
	[ "$kind" = simulated ] || return 0
	ctl sim-dma write "$device" --iova "$1" --text "$2" >/dev/null
}

ctl map "$parent" --iova 0x100000 --map-file "$file"
child=$(ctl nest "$parent")
equal "children of the parent" 1 "$(ctl info "$parent" --field nr_children)"
refused EBUSY ctl free "$parent"

# A device is attached to the parent first.
other=$(bind_device 7 2)
refused EINVAL ctl attach "$other" "$child"
ctl attach "$device" "$child"
equal "the parent" "$parent" "$(ctl info "$child" --field parent)"
equal "the depth" 1 "$(ctl info "$child" --field depth)"
case ,$(ctl info "$child" --field flags), in
*,SHADOW,*) ;;
*) fail "a child has no flag SHADOW" ;;
esac
refused EBUSY ctl detach "$device" "$parent"
faults 0x100000

# The child's addresses lead into the parent.
ctl map "$child" --iova 0x1000 --parent-address 0x101000 --size 4K
sees 0x1000 second
faults 0x2000
written 0x1000 another
[ "$kind" != simulated ] || equal "what the device wrote" another "$(tail -c +4097 "$file" | head -c 7)"
equal "bytes charged for the child" 0 "$(ctl info "$child" --field locked_bytes)"

# Rights are those that both give.
ctl map "$child" --iova 0x3000 --parent-address 0x100000 --size 4K --read
sees 0x3000 first
[ "$kind" != simulated ] || refused EIO ctl sim-dma write "$device" --iova 0x3000 --text no

# Where the parent maps nothing there is a hole, until it does, and again when it does no more.
ctl map "$child" --iova 0x10000 --parent-address 0x200000 --size 8K
faults 0x10000
ctl map "$parent" --iova 0x201000 --map-file "$file" --size 4K
faults 0x10000
sees 0x11000 first
ctl unmap "$parent" --iova 0x201000 --size 4K >/dev/null
faults 0x11000

# A grandchild.
grandchild=$(ctl nest "$child")
ctl attach "$device" "$grandchild"
equal "the depth of a grandchild" 2 "$(ctl info "$grandchild" --field depth)"
ctl map "$grandchild" --iova 0x70000 --parent-address 0x1000 --size 4K
sees 0x70000 another
ctl unmap "$child" --iova 0x1000 --size 4K >/dev/null
faults 0x70000
ctl map "$child" --iova 0x1000 --parent-address 0x100000 --size 4K
sees 0x70000 first

# What is wrong.
refused EINVAL ctl map "$child" --iova 0x20000 --map-file "$file"
refused EEXIST ctl map "$child" --iova 0x1000 --parent-address 0x100000 --size 4K
refused EINVAL ctl map "$child" --iova 0x20000 --parent-address 0x100100 --size 4K
refused EOVERFLOW ctl map "$child" --iova 0x20000 --parent-address 0xfffffffffffff000 --size 8K
refused ENOENT ctl nest 4711

# Back, a level at a time.
ctl detach "$device" "$grandchild"
sees 0x1000 first
ctl detach "$device" "$child"
sees 0x101000 another
ctl free "$grandchild"
ctl free "$child"
equal "children that are left" 0 "$(ctl info "$parent" --field nr_children)"

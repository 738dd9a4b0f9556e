#!/bin/sh
rule="dirty tracking tells which pages devices wrote since it was last asked, through children too, and an unmap loses none"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
[ "$(ctl check dirty-tracking)" = 1 ] || skip "this node does not track dirty pages"
device=$(bind_device 7 1)
id=$(ctl alloc)
refused ENODEV ctl dirty start "$id"
ctl attach "$device" "$id"
file=$work/file
truncate -s 64K "$file"
ctl map "$id" --iova 0x10000 --map-file "$file"

# dirty IOVA SIZE: prints what was written, in one line.
dirty() { ctl dirty read "$id" --iova "$1" --size "$2" | xargs; }
write_to() { ctl sim-dma write "$device" --iova "$1" --text x >/dev/null; }

refused EINVAL ctl dirty read "$id" --iova 0x10000 --size 64K
explained DIRTY_START
refused EINVAL ctl unmap "$id" --iova 0x10000 --size 64K --dirty
ctl dirty start "$id"
case ,$(ctl info "$id" --field flags), in
*,TRACKING,*) ;;
*) fail "there is no flag TRACKING" ;;
esac

if [ "$kind" = vfio ]; then
	# All that is pinned may have been written, each time anew.
	equal "what may have been written" 0x10000-0x1ffff "$(dirty 0x10000 64K)"
	equal "the same once more" 0x10000-0x1ffff "$(dirty 0x10000 64K)"
	equal "the answer of an unmap" "unmapped=65536 written=0x10000-0x1ffff" \
		"$(ctl unmap "$id" --iova 0x10000 --size 64K --dirty | xargs)"
	ctl dirty stop "$id"
	exit 0
fi

equal "nothing yet" "" "$(dirty 0x10000 64K)"
write_to 0x10fff
write_to 0x13000
head -c 8192 /dev/zero >"$work/zeroes"
ctl sim-dma write "$device" --iova 0x1a800 --file "$work/zeroes" >/dev/null
equal "what was read is not written" "$(printf '%08d' 0)" \
	"$(ctl sim-dma read "$device" --iova 0x15000 --size 4)"
equal "a part" 0x13000-0x13fff "$(dirty 0x12000 16K)"
equal "the rest" "0x10000-0x10fff 0x1a000-0x1cfff" "$(dirty 0 1M)"
equal "nothing more" "" "$(dirty 0 1M)"

# What was written before an unmap is told by it, and not by the mapping that comes after.
write_to 0x14000
equal "the answer of an unmap" "unmapped=65536 written=0x14000-0x14fff" \
	"$(ctl unmap "$id" --iova 0x10000 --size 64K --dirty | xargs)"
ctl map "$id" --iova 0x10000 --map-file "$file"
equal "nothing of the new mapping" "" "$(dirty 0 1M)"

# Through a child: written in both, each asked for by itself.
child=$(ctl nest "$id")
ctl attach "$device" "$child"
ctl map "$child" --iova 0x400000 --parent-address 0x18000 --size 8K
ctl dirty start "$child"
write_to 0x401000
equal "the child's" 0x401000-0x401fff "$(ctl dirty read "$child" --iova 0x400000 --size 8K)"
equal "the parent's" 0x19000-0x19fff "$(dirty 0 1M)"
ctl detach "$device" "$child"

write_to 0x11000
ctl dirty stop "$id"
refused EINVAL ctl dirty read "$id" --iova 0 --size 1M
ctl dirty start "$id"
equal "what was written before the start" "" "$(dirty 0 1M)"

# What is wrong.
refused EINVAL ctl dirty read "$id" --iova 0x800 --size 4K
refused EINVAL ctl dirty read "$id" --iova 0 --size 0
refused EINVAL ctl dirty read "$id" --iova 0 --size 256G
refused EOVERFLOW ctl dirty read "$id" --iova 0xfffffffffffff000 --size 8K
refused EINVAL ctl raw dirty ioasid="$id" flags=3
refused EINVAL ctl raw dirty ioasid="$id" flags=4 size=1M page_size=4K bitmap=@8 bitmap_size=8
refused EFAULT ctl raw dirty ioasid="$id" flags=4 size=1M page_size=4K bitmap=@8 bitmap_size=32

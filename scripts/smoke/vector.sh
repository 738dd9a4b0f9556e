#!/bin/sh
rule="a vector does its operations in order, says how many were done, and what it did before a refusal stays"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
[ "$(ctl check vector)" = 1 ] || skip "this node takes no vectors"
device=$(bind_device 7 1)
id=$(ctl alloc)
ctl attach "$device" "$id"
file=$work/file
printf first >"$file"
truncate -s 4096 "$file"
printf second >>"$file"
truncate -s 8192 "$file"

sees() {
	[ "$kind" = simulated ] || return 0
	equal "what the device sees at $1" "$2" "$(ctl sim-dma read "$device" --iova "$1" --size 16 --text)"
}

equal "operations done" 4 "$(ctl vector "$id" - <<END
# a file, by its descriptor
map-file 0x10000 8K 0 $file
map-file r 0x20000 4K 4K $file
unmap 0x10000 8K

map-file rw 0x11000 4K 0 $file
END
)"
equal "mappings" 2 "$(ctl info "$id" --field nr_mappings)"
sees 0x11000 first
sees 0x20000 second
[ "$kind" != simulated ] || refused EIO ctl sim-dma write "$device" --iova 0x20000 --text no

# The third is refused.
cat >"$work/operations" <<END
unmap 0x11000 4K
map-file 0x30000 4K 0 $file
map-file 0x20000 4K 0 $file
unmap-all
END
refused EEXIST ctl vector "$id" "$work/operations"
explained "line 3"
explained 0x20000
equal "operations done before the refusal" 2 "$(cat "$work/output")"
equal "mappings after the refusal" 2 "$(ctl info "$id" --field nr_mappings)"
sees 0x30000 first
echo unmap-all >"$work/operations"
equal "operations done" 1 "$(ctl vector "$id" "$work/operations")"
equal "mappings" 0 "$(ctl info "$id" --field nr_mappings)"

# More than one call of the node takes.
page=0
while [ $page -lt 2050 ]; do
	page=$((page + 1))
	echo "map-file $((0x100000 + page * 8192)) 4K 0 $file"
done >"$work/operations"
equal "operations done" 2050 "$(ctl vector "$id" "$work/operations")"
equal "mappings" 2050 "$(ctl info "$id" --field nr_mappings)"

# Of a child.
if [ "$(ctl check nesting)" = 1 ]; then
	child=$(ctl nest "$id")
	ctl attach "$device" "$child"
	equal "operations done" 2 "$(ctl vector "$child" - <<END
map 0x1000 4K 0x102000
map r 0x2000 4K 0x104000
END
)"
	sees 0x1000 first
	sees 0x2000 first
fi
refused EINVAL ctl raw vector ioasid="$id" nr_ops=0
refused EINVAL ctl raw vector ioasid="$id" nr_ops=2049 ops=@64
refused EINVAL ctl raw vector ioasid="$id" nr_ops=1 ops=@40
refused ENOENT ctl vector 4711 "$work/operations"

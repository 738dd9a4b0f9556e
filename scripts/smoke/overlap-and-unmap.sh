#!/bin/sh
rule="mappings do not overlap; an unmap takes whole mappings and says how many bytes; unmapping nothing is 0"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
id=$(ctl alloc)
device=$(bind_device 7 1)
ctl attach "$device" "$id"
file=$work/file
truncate -s 64K "$file"

ctl map "$id" --iova 0x100000 --file "$file" --size 16K
ctl map "$id" --iova 0x104000 --file "$file" --offset 16K --size 16K
refused EEXIST ctl map "$id" --iova 0x100000 --file "$file" --size 16K
refused EEXIST ctl map "$id" --iova 0xff000 --file "$file" --size 8K
refused EEXIST ctl map "$id" --iova 0x107000 --file "$file" --size 8K
equal "mappings" 2 "$(ctl info "$id" --field nr_mappings)"

# In the middle of a mapping, at its begin, at its end.
refused EINVAL ctl unmap "$id" --iova 0x101000 --size 4K
refused EINVAL ctl unmap "$id" --iova 0x100000 --size 4K
refused EINVAL ctl unmap "$id" --iova 0x102000 --size 24K
equal "mappings after refused unmaps" 2 "$(ctl info "$id" --field nr_mappings)"
equal "bytes after refused unmaps" 32768 "$(ctl info "$id" --field mapped_bytes)"

equal "unmap of nothing" 0 "$(ctl unmap "$id" --iova 0x200000 --size 4K)"
equal "unmap of one" 16384 "$(ctl unmap "$id" --iova 0x100000 --size 16K)"
equal "unmap of it again" 0 "$(ctl unmap "$id" --iova 0x100000 --size 16K)"

# A range may be larger than what lies in it.
ctl map "$id" --iova 0x110000 --file "$file" --offset 32K --size 4K
equal "unmap of two with gaps" 20480 "$(ctl unmap "$id" --iova 0x100000 --size 1M)"

ctl map "$id" --iova 0x100000 --file "$file" --size 4K
ctl map "$id" --iova 0x300000 --file "$file" --size 8K
refused EINVAL ctl raw unmap-dma ioasid="$id" flags=1 iova=0x100000 size=4K
equal "unmap of all" 12288 "$(ctl unmap "$id" --all)"
equal "unmap of all, again" 0 "$(ctl unmap "$id" --all)"
equal "mappings at the end" 0 "$(ctl info "$id" --field nr_mappings)"

refused EINVAL ctl unmap "$id" --iova 0x100000 --size 0
refused EINVAL ctl unmap "$id" --iova 0x100800 --size 4K
refused EINVAL ctl map "$id" --iova 0x100800 --file "$file" --size 4K
refused EINVAL ctl map "$id" --iova 0x100000 --file "$file" --size 100
refused EOVERFLOW ctl map "$id" --iova 0xfffffffffffff000 --file "$file" --size 8K

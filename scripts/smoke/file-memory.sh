#!/bin/sh
rule="a file is mapped by its descriptor alone, from any offset, with the rights that the descriptor has"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
[ "$(ctl check file-memory)" = 1 ] || skip "this node does not map files by their descriptors"
id=$(ctl alloc)
device=$(bind_device 7 1)
ctl attach "$device" "$id"
file=$work/file
printf first >"$file"
truncate -s 4096 "$file"
printf second >>"$file"
truncate -s 8192 "$file"

# sees IOVA TEXT
sees() {
	[ "$kind" = simulated ] || return 0
	equal "what the device sees at $1" "$2" \
		"$(ctl sim-dma read "$device" --iova "$1" --size 16 --text)"
}
# map_fd ARGUMENT...: maps the file of descriptor 5.
map_fd() { ctl map "$id" --map-fd 5 "$@"; }

ctl map "$id" --iova 0x10000 --map-file "$file"
sees 0x10000 first
sees 0x11000 second
equal "bytes of the whole file" 8192 "$(ctl info "$id" --field mapped_bytes)"
ctl map "$id" --iova 0x20000 --map-file "$file" --offset 4K
sees 0x20000 second
ctl map "$id" --iova 0x30000 --map-file "$file" --size 4K
sees 0x30000 first
if [ "$kind" = simulated ]; then
	refused EIO ctl sim-dma read "$device" --iova 0x21000 --size 1
	refused EIO ctl sim-dma read "$device" --iova 0x31000 --size 1
	ctl sim-dma write "$device" --iova 0x20000 --text another >/dev/null
	equal "what the device wrote" another "$(tail -c +4097 "$file" | head -c 7)"
fi

# A descriptor says what is permitted, whatever its file's mode says.
exec 5<"$file"
map_fd --iova 0x40000 --read
sees 0x40000 first
[ "$kind" != simulated ] || refused EIO ctl sim-dma write "$device" --iova 0x40000 --text x
refused EPERM map_fd --iova 0x50000
refused EPERM map_fd --iova 0x50000 --write
refused EPERM ctl map "$id" --iova 0x50000 --map-file "$file" --protection r --write
exec 5>>"$file"
refused EPERM map_fd --iova 0x50000 --read
refused EPERM map_fd --iova 0x50000

# A file that has lost its name, and a descriptor that is closed afterwards.
exec 5<>"$file"
rm "$file"
map_fd --iova 0x50000 --offset 4K
exec 5>&-
[ "$kind" != simulated ] || sees 0x50000 another

# What is no file with memory.
refused EBADF map_fd --iova 0x60000 --size 4K
refused EBADF ctl map "$id" --iova 0x60000 --map-fd -1 --size 4K
mkfifo "$work/pipe"
exec 5<>"$work/pipe"
refused EOPNOTSUPP map_fd --iova 0x60000 --size 4K --read
exec 5<"$work"
refused EOPNOTSUPP map_fd --iova 0x60000 --size 4K --read
exec 5<>/dev/null
refused EOPNOTSUPP map_fd --iova 0x60000 --size 4K --read
exec 5<>"$IOASID_NODE"
refused EOPNOTSUPP map_fd --iova 0x60000 --size 4K --read

# What is no part of the file.
page=$(buffer page)
exec 5<>"$page"
refused EFAULT map_fd --iova 0x60000 --size 8K
refused EFAULT map_fd --iova 0x60000 --size 4K --offset 4K
refused EINVAL map_fd --iova 0x60000 --size 4K --offset 100
refused EINVAL map_fd --iova 0x60000 --size 100
refused EINVAL map_fd --iova 0x60000 --size 0
refused EOVERFLOW map_fd --iova 0x60000 --size 8K --offset 0xfffffffffffff000
refused EEXIST map_fd --iova 0x50000
refused EINVAL ctl raw map-dma ioasid="$id" flags=3 iova=0x60000 size=4K fd=5
equal "mappings at the end" 5 "$(ctl info "$id" --field nr_mappings)"

#!/bin/sh
rule="private memory is mapped for devices as it is or refused with the reason, never silently missed"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
[ "$(ctl check private-memory)" = 0 ] || skip "this node maps private memory"
id=$(ctl alloc)
device=$(bind_device 7 1)
ctl attach "$device" "$id"
page=$(buffer page)

refused EOPNOTSUPP ctl map "$id" --iova 0x10000 --private --size 4K
explained private
refused EOPNOTSUPP ctl map "$id" --iova 0x10000 --private --file "$page"
explained private
refused EOPNOTSUPP ctl map "$id" --iova 0x10000 --private --file "$page" --read
explained private
equal "mappings" 0 "$(ctl info "$id" --field nr_mappings)"

# Memory that nobody has is another matter, and shared memory is none.
refused EFAULT ctl map "$id" --iova 0x10000 --vaddr 0x10000 --size 4K
ctl map "$id" --iova 0x10000 --memfd --size 4K
ctl map "$id" --iova 0x20000 --file "$page"

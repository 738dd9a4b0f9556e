#!/bin/sh
rule="what is mapped and registered is charged against RLIMIT_MEMLOCK, and a refusal says how much was used of how much"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
id=$(ctl alloc)
device=$(bind_device 7 1)
ctl attach "$device" "$id"

# limited ARGUMENT...: ioasidctl in a process that may lock 64 KiB. CAP_IPC_LOCK would lift that.
limited() {
	# shellcheck disable=SC2016 # for the inner shell
	$drop sh -c 'ulimit -l 64 && exec "$@"' sh "$IOASIDCTL" --fd 7 "$@"
}
drop=
if [ "$(ctl info "$id" --field locked_limit)" = unlimited ]; then
	drop="setpriv --bounding-set=-ipc_lock"
	$drop true 2>/dev/null || skip "CAP_IPC_LOCK cannot be given up here (it takes setpriv of util-linux)"
	equal "the limit as JSON" null "$(ctl --json info "$id" --field locked_limit)"
fi
equal "the limit" 65536 "$(limited info "$id" --field locked_limit)"
equal "the limit as JSON" 65536 "$(limited --json info "$id" --field locked_limit)"
equal "used by a process that has mapped nothing" 0 "$(limited info "$id" --field locked_used)"

refused ENOMEM limited map "$id" --iova 0x10000 --memfd --size 68K
explained 69632 # what this takes
explained " 0 locked"
explained 65536 # the limit
refused ENOMEM limited map "$id" --iova 0x10000 --memfd --size 68K --read
equal "mappings after refusals" 0 "$(ctl info "$id" --field nr_mappings)"
equal "charged after refusals" 0 "$(ctl info "$id" --field locked_bytes)"

limited map "$id" --iova 0x100000 --memfd --size 64K
equal "charged" 65536 "$(ctl info "$id" --field locked_bytes)"

if [ "$(ctl check file-memory)" = 1 ]; then
	truncate -s 68K "$work/file"
	refused ENOMEM limited map "$id" --iova 0x200000 --map-file "$work/file"
	limited map "$id" --iova 0x200000 --map-file "$work/file" --size 64K
fi
if [ "$(ctl check private-memory)" = 1 ]; then
	refused ENOMEM limited map "$id" --iova 0x300000 --private --size 68K
	limited map "$id" --iova 0x300000 --private --size 64K
fi

# Nothing is charged any more for what was unmapped.
equal "bytes unmapped" "$(ctl info "$id" --field mapped_bytes)" "$(ctl unmap "$id" --all)"
equal "charged after the unmap" 0 "$(ctl info "$id" --field locked_bytes)"

# Without the limit in the way.
ctl map "$id" --iova 0x1000000 --memfd --size 1M
equal "charged without a limit" 1048576 "$(ctl info "$id" --field locked_bytes)"

if [ "$(ctl check register-memory)" = 1 ]; then
	refused ENOMEM limited register --memfd --size 68K
	explained 65536
	ctl map "$id" --iova 0x10000 --memfd --size 4K # which shows that nothing is registered
	# All that may be locked is registered: to map it costs nothing more.
	limited map "$id" --iova 0x400000 --memfd --size 64K --register
	equal "charged for mappings" $((1048576 + 4096)) "$(ctl info "$id" --field locked_bytes)"
fi

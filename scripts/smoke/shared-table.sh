#!/bin/sh
rule="a group that shares the table of another goes where that one goes, sees what it sees, and is charged once"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_devices 2

exec 7<>"$IOASID_NODE"
[ "$(ctl check shared-table)" = 1 ] || skip "this node shares no tables"

# share DEVICE: binds the second device, to the table of the other.
share() {
	with=$1
	# shellcheck disable=SC2086 # the list is split on purpose
	set -- $devices
	case $kind in
	simulated) ctl bind --simulated "$2" --share-with "$with" ;;
	vfio) ctl bind --vfio-group "/dev/vfio/${2##*:}" "${2%:*}" --share-with "$with" ;;
	esac
}

refused ENOENT share 4711
first=$(bind_device 7 1)
second=$(share "$first")
id=$(ctl alloc)
other=$(ctl alloc)
file=$(buffer memory)

ctl attach "$first" "$id"
refused EBUSY ctl map "$id" --iova 0x10000 --file "$file"
refused EBUSY ctl attach "$second" "$other"
ctl attach "$second" "$id"
ctl map "$id" --iova 0x10000 --file "$file"
equal "devices attached" 2 "$(ctl info "$id" --field nr_devices)"
equal "bytes charged" 4096 "$(ctl info "$id" --field locked_bytes)"
if [ "$kind" = simulated ]; then
	ctl sim-dma write "$first" --iova 0x10000 --text shared >/dev/null
	equal "what the other device sees" shared \
		"$(ctl sim-dma read "$second" --iova 0x10000 --size 8 --text)"
fi

# The one is unbound without the other.
ctl detach "$first" "$id"
refused EBUSY ctl unmap "$id" --all
ctl unbind "$first"
equal "bytes unmapped" 4096 "$(ctl unmap "$id" --all)"
ctl detach "$second" "$id"
ctl unbind "$second"

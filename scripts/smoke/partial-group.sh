#!/bin/sh
# Environment: IOASID_TEST_PAIR="ADDRESS ADDRESS GROUP", two functions of one slot on vfio-pci;
# without it, a daemon of our own with two simulated devices in one group.
rule="while only some devices of a group are attached, their IOASID refuses commands; once all are, it works"
[ -n "${IOASID_TEST_PAIR:-}" ] || settings='
[[simulated]]
name = "left"
group = 100
[[simulated]]
name = "right"
group = 100
'
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
if [ -n "${IOASID_TEST_PAIR:-}" ]; then
	# shellcheck disable=SC2086 # the list is split on purpose
	set -- $IOASID_TEST_PAIR
	exec 6<>"/dev/vfio/$3"
	left=$(ctl bind "$1" --group-fd 6)
	right=$(ctl bind "$2" --group-fd 6)
else
	left=$(ctl bind --simulated left)
	right=$(ctl bind --simulated right)
fi
equal "the group of both" "$(ctl device-info "$left" --field group)" "$(ctl device-info "$right" --field group)"
id=$(ctl alloc)
other=$(ctl alloc)
file=$(buffer memory)

ctl attach "$left" "$id"
refused EBUSY ctl map "$id" --iova 0x10000 --file "$file"
explained group
refused EBUSY ctl info "$id"
refused EBUSY ctl attach "$right" "$other"

ctl attach "$right" "$id"
ctl map "$id" --iova 0x10000 --file "$file"
equal "devices attached" 2 "$(ctl info "$id" --field nr_devices)"

ctl detach "$left" "$id"
refused EBUSY ctl unmap "$id" --all
ctl attach "$left" "$id"
equal "bytes unmapped" 4096 "$(ctl unmap "$id" --all)"
ctl detach "$left" "$id"
ctl detach "$right" "$id"
ctl unbind "$left"
ctl unbind "$right"

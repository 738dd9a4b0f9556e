#!/bin/sh
rule="an IOASID takes no command before a device has been attached to it for the first time"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
id=$(ctl alloc)
device=$(bind_device 7 1)
page=$(buffer page)

refused ENODEV ctl map "$id" --iova 0x10000 --file "$page"
refused ENODEV ctl unmap "$id" --iova 0x10000 --size 4K
refused ENODEV ctl unmap "$id" --all
refused ENODEV ctl info "$id"

ctl attach "$device" "$id"
ctl map "$id" --iova 0x10000 --file "$page"
equal "mappings after the attach" 1 "$(ctl info "$id" --field nr_mappings)"
equal "devices after the attach" 1 "$(ctl info "$id" --field nr_devices)"

ctl detach "$device" "$id"
equal "mappings after the detach" 1 "$(ctl info "$id" --field nr_mappings)"
equal "bytes unmapped after the detach" 4096 "$(ctl unmap "$id" --all)"

#!/bin/sh
rule="every refusal explains itself, with the ranges and numbers that it is about, until the next one"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
refused ENOENT ctl error

id=$(ctl alloc)
device=$(bind_device 7 1)
refused ENODEV ctl info "$id"
explained "IOASID $id"
ctl attach "$device" "$id"
page=$(buffer page)
ctl map "$id" --iova 0x10000 --file "$page"

refused EEXIST ctl map "$id" --iova 0x10000 --file "$page"
explained "0x10000"
explained "IOASID $id"

# The same sentence for who asks later, from another process; a success does not erase it.
ctl info "$id" >/dev/null
sentence=$(sed 's/^ioasidctl: map: /IOASID_MAP_DMA: /' "$work/error")
equal "the sentence afterwards" "$sentence" "$(ctl error)"

refused EINVAL ctl unmap "$id" --iova 0x10800 --size 4K
explained "0x10800"
case $(ctl error) in
"IOASID_UNMAP_DMA: EINVAL: "?*) ;;
*) fail "the last refusal is not the last: $(ctl error)" ;;
esac

refused ENOENT ctl free 4242
explained "4242"
refused ENOENT ctl8 error 8<>"$IOASID_NODE"

# For programs the same as JSON, on standard error.
status=0
ctl --json map "$id" --iova 0x10000 --file "$page" >"$work/output" 2>"$work/error" || status=$?
equal "status with --json" 1 "$status"
equal "standard output with --json" "" "$(cat "$work/output")"
explained '"errno":"EEXIST"'
explained '"command":"IOASID_MAP_DMA"'
explained "0x10000"

#!/bin/sh
rule="a device that does not suit an IOASID is refused with the property that differs, and so is a map that its table has no room for"
settings='
[[simulated]]
name = "any"
group = 100
page-sizes = [0x1000, 0x200000]
[[simulated]]
name = "small"
group = 101
page-sizes = [0x1000]
[[simulated]]
name = "large"
group = 102
page-sizes = [0x200000]
[[simulated]]
name = "low"
group = 103
aperture = [0, 0xffffff]
[[simulated]]
name = "high"
group = 104
aperture = [0x1000000, 0x1ffffff]
[[simulated]]
name = "hole"
group = 105
reserved = [[0x10000, 0x1ffff]]
[[simulated]]
name = "few"
group = 106
max-mappings = 2
'
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
bind() { ctl bind --simulated "$1"; }
any=$(bind any) small=$(bind small) large=$(bind large) low=$(bind low)
high=$(bind high) hole=$(bind hole) few=$(bind few)
id=$(ctl alloc)
memory=$(buffer memory)

# differs DEVICE ERRNO TEXT...: the device cannot be attached, and the explanation names each TEXT.
differs() {
	before=$(ctl info "$id")
	refused "$2" ctl attach "$1" "$id"
	shift 2
	for text in "$@"; do
		explained "$text"
	done
	equal "the IOASID after a refusal" "$before" "$(ctl info "$id")"
}

ctl attach "$small" "$id"
differs "$large" EINVAL '"large"' 'page sizes' '2 MiB' '4 KiB' 'none in common'
ctl detach "$small" "$id"
ctl attach "$low" "$id"
differs "$high" EINVAL '"high"' 'no usable IOVA in common'
ctl detach "$low" "$id"

ctl attach "$any" "$id"
ctl map "$id" --iova 0x10000 --map-file "$memory"
differs "$large" EINVAL '"large"' 'smallest page size' 0x200000 0x10000 'not aligned'
differs "$hole" EADDRINUSE '"hole"' 0x10000 'cannot use'
differs "$high" EADDRINUSE '"high"' 0x10000 'cannot use'
# What fits is taken, and then all have what they have in common.
ctl attach "$low" "$id"
refused EINVAL ctl map "$id" --iova 0x1000000 --map-file "$memory"
explained aperture
ctl detach "$low" "$id"

ctl map "$id" --iova 0x11000 --map-file "$memory"
ctl map "$id" --iova 0x12000 --map-file "$memory"
differs "$few" ENOSPC '"few"' 'more than 2 entries'
ctl unmap "$id" --iova 0x12000 --size 4K >/dev/null
ctl attach "$few" "$id"
refused ENOSPC ctl map "$id" --iova 0x12000 --map-file "$memory"
child=$(ctl nest "$id")
ctl attach "$few" "$child"
ctl map "$child" --iova 0 --parent-address 0x10000 --size 8K
before=$(ctl info "$child")
refused ENOSPC ctl map "$child" --iova 0x4000 --parent-address 0x11000 --size 4K
explained '"few", which holds 2'
equal "the child after a refusal" "$before" "$(ctl info "$child")"

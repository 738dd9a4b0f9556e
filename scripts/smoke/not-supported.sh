#!/bin/sh
rule="an ability that CHECK_EXTENSION denies is refused with EOPNOTSUPP, never accepted and ignored"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
id=$(ctl alloc)
device=$(bind_device 7 1)
ctl attach "$device" "$id"

tested=
# denied EXTENSION: is it? Says so at the end.
denied() {
	[ "$(ctl check "$1")" = 0 ] || return 1
	tested="$tested $1"
}

if denied nesting; then
	refused EOPNOTSUPP ctl nest "$id"
fi
if denied user-page-table; then
	refused EOPNOTSUPP ctl bind-table "$id" --format x86-4level --address 0x1000
	refused EOPNOTSUPP ctl unbind-table "$id"
fi
if denied user-pasid-table; then
	refused EOPNOTSUPP ctl bind-pasids "$id" --format vtd --address 0x1000 --bits 6
	refused EOPNOTSUPP ctl unbind-pasids "$id"
	ctl detach "$device" "$id"
	refused EOPNOTSUPP ctl attach "$device" "$id" --pasid 1
	ctl attach "$device" "$id"
	[ "$(ctl check user-page-table)" = 1 ] || refused EOPNOTSUPP ctl invalidate "$id"
fi
if denied dirty-tracking; then
	refused EOPNOTSUPP ctl dirty start "$id"
fi
if denied vector; then
	refused EOPNOTSUPP ctl raw vector ioasid="$id" nr_ops=1 ops=@40
fi
if denied register-memory; then
	refused EOPNOTSUPP ctl register --memfd --size 4K
	refused EOPNOTSUPP ctl unregister --vaddr 0x1000 --size 4K
fi
if denied private-memory; then
	refused EOPNOTSUPP ctl map "$id" --iova 0x10000 --private --size 4K
	explained private
	refused EOPNOTSUPP ctl map "$id" --iova 0x10000 --private --memfd --size 4K --read
	explained private
fi
if denied file-memory; then
	refused EOPNOTSUPP ctl map "$id" --iova 0x10000 --map-file "$(buffer page)"
fi
if denied simulated; then
	refused EOPNOTSUPP ctl bind --simulated sim0
fi

equal "an extension that nobody knows" 0 "$(ctl check 0xffff)"
equal "the extension that all depends on" 1 "$(ctl check map-type1v2)"
[ -n "$tested" ] || skip "this node can do everything"
echo "denied and refused:$tested"

#!/bin/sh
rule="how far a command is can be asked and shown; it is 0 of 0 while none works, and no script sees it unasked"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
id=$(ctl alloc)
device=$(bind_device 7 1)

# shown ARGUMENT...: runs it; what standard error has of it is in $work/error.
shown() {
	ctl "$@" >"$work/output" 2>"$work/error" || fail "\`$*' failed: $(cat "$work/error")"
}
# Lines on the way, if it took so long, and one at the end.
told() {
	equal "the line at the end" 1 "$(grep -c "^ioasidctl: $1: done in [0-9.]* s\$" "$work/error")"
	! grep -Ev "^ioasidctl: $1: (done in |.* of .* \\([0-9]+%\\), .*/s\$)" "$work/error" >&2 ||
		fail "these are no lines of progress"
}

shown attach "$device" "$id" --progress always
told attach
shown map "$id" --iova 0x1000000 --memfd --size 16M --progress always
told map
equal "standard output" "" "$(cat "$work/output")"
shown --json map "$id" --iova 0x3000000 --memfd --size 16M --progress always
told map
equal "lines of JSON" 1 "$(grep -c . "$work/output")"

shown map "$id" --iova 0x5000000 --memfd --size 16M
equal "standard error that is no terminal" "" "$(cat "$work/error")"
shown map "$id" --iova 0x7000000 --memfd --size 16M --progress never
equal "standard error with never" "" "$(cat "$work/error")"
refused EEXIST ctl map "$id" --iova 0x7000000 --memfd --size 16M --progress always
! grep "done in" "$work/error" || fail "a refused command is shown as done"

equal "work done while nothing works" 0 "$(ctl info "$id" --field work_done)"
equal "work to do while nothing works" 0 "$(ctl info "$id" --field work_total)"
equal "mappings" 4 "$(ctl info "$id" --field nr_mappings)"

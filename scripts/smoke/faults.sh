#!/bin/sh
rule="every fault of a device is a record; one that waits goes on, tries again or fails as it is answered"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"
need_simulated

exec 7<>"$IOASID_NODE"
[ "$(ctl check faults)" = 1 ] || skip "this node has no fault records"
device=$(ctl bind --simulated "${devices%% *}" --cookie 0xc0ffee)
id=$(ctl alloc)
ctl attach "$device" "$id"
page=$(buffer page)
equal "records of nothing" "" "$(ctl faults)"

# recorded FIELD=VALUE...: the one record that there is has them, and is gone then.
recorded() {
	record=$(ctl faults)
	equal "the number of records" 1 "$(echo "$record" | grep -c .)"
	for word; do
		case " $record " in
		*" $word "*) ;;
		*) fail "a record should have $word: $record" ;;
		esac
	done
	equal "the records after" "" "$(ctl faults)"
}

refused EIO ctl sim-dma write "$device" --iova 0x10004 --text x
recorded id=0 access=write address=0x10004 reason=not-mapped ioasid="$id" device="$device" \
	cookie=0xc0ffee lost=0 source=device
ctl map "$id" --iova 0x10000 --file "$page" --read
refused EIO ctl sim-dma write "$device" --iova 0x10004 --text x
recorded id=0 reason=permission
refused EIO ctl sim-dma read "$device" --iova 0x10ffe --size 4
recorded access=read address=0x11000 reason=not-mapped
ctl unmap "$id" --all >/dev/null

if [ "$(ctl check recoverable-faults)" = 1 ]; then
	# wait_at IOVA: the device begins to write there and waits; sets fault.
	wait_at() {
		told=$(ctl sim-dma write "$device" --iova "$1" --text hello --recoverable | xargs)
		fault=$(ctl faults --field id)
		equal "what a device that waits tells" "done=0 fault=$fault" "$told"
		[ "$fault" -gt 0 ] || fail "the record cannot be answered"
	}
	go_on() { ctl sim-dma write "$device" --iova 0x10000 --text hello --continue "$1"; }

	# It gets what it waited for.
	wait_at 0x10000
	refused EAGAIN go_on "$fault"
	ctl map "$id" --iova 0x10000 --file "$page"
	ctl complete "$fault" success
	equal "the rest of the DMA" "done=5 fault=0" "$(go_on "$fault" | xargs)"
	equal "what the device wrote" hello "$(head -c 5 "$page")"
	refused ENOENT ctl complete "$fault" success
	refused ENOENT go_on "$fault"
	ctl unmap "$id" --all >/dev/null

	# It does not, and tries again, and then it fails.
	wait_at 0x10000
	first=$fault
	ctl complete "$first" retry
	told=$(go_on "$first" | xargs)
	second=$(ctl faults --field id)
	[ "$second" != "$first" ] || fail "a new fault has the id of the old one"
	equal "a retry that meets nothing" "done=0 fault=$second" "$told"
	ctl complete "$second" fail
	refused EIO go_on "$second"

	# Success that was none.
	wait_at 0x10000
	ctl complete "$fault" success
	refused EIO go_on "$fault"
	ctl faults >/dev/null

	# The first part of the DMA is done before it waits.
	ctl map "$id" --iova 0x10000 --file "$page"
	told=$(ctl sim-dma write "$device" --iova 0x10ffd --text hello --recoverable | xargs)
	fault=$(ctl faults --field id)
	equal "a write over the end" "done=3 fault=$fault" "$told"
	ctl map "$id" --iova 0x11000 --file "$page"
	ctl complete "$fault" success
	equal "the rest of it" "done=2 fault=0" \
		"$(ctl sim-dma write "$device" --iova 0x11000 --text lo --continue "$fault" | xargs)"
	equal "what came last" lo "$(head -c 2 "$page")"
	equal "what came first" hel "$(tail -c 3 "$page")"
	ctl unmap "$id" --all >/dev/null

	# A detach fails what waits.
	wait_at 0x10000
	refused EINVAL ctl raw complete-fault id="$fault" response=3
	ctl detach "$device" "$id"
	refused ENOENT ctl complete "$fault" success
	ctl attach "$device" "$id"
fi

# Another shell waits for records.
mkfifo "$work/records"
ctl faults --follow --count 2 --field address >"$work/records" &
follower=$!
{
	refused EIO ctl sim-dma read "$device" --iova 0x20000 --size 1
	read -r first
	equal "the first that comes" 0x20000 "$first"
	refused EIO ctl sim-dma read "$device" --iova 0x30000 --size 1
	read -r second
	equal "the second that comes" 0x30000 "$second"
} <"$work/records"
wait "$follower" || fail "faults --count 2 did not end well"

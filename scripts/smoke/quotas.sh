#!/bin/sh
rule="one user has so many opens and so much registered memory and no more; what is given back can be had again"
settings='[limits]
opens-per-user = 3
registered-bytes = 8192
registered-bytes-per-user = 12288
ioasids = 2
devices = 1
'
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE" 8<>"$IOASID_NODE" 9<>"$IOASID_NODE"
said=$( (exec 6<>"$IOASID_NODE") 2>&1) && fail "a fourth open"
case $said in *'Too many open files'*) ;; *) fail "a fourth open: $said" ;; esac
exec 9>&-

first=$(ctl alloc)
ctl alloc >/dev/null
refused ENOSPC ctl alloc
ctl free "$first"
ctl alloc >/dev/null
device=$(ctl bind --simulated sim0)
refused ENOSPC ctl bind --simulated sim1
ctl unbind "$device"

[ "$(ctl check register-memory)" = 1 ] || skip "opens and numbers were shown; this node cannot register memory"
refused ENOSPC ctl register --memfd --size 12K
explained 'this open'
# A program's registrations last until the open ends, also when it has ended.
ctl register --memfd --size 8K
refused ENOSPC ctl register --memfd --size 4K
explained 'this open'
refused ENOSPC ctl8 register --memfd --size 8K
case $("$IOASIDCTL" --fd 8 error) in *user*) ;; *) fail "it is not said whose quota it is" ;; esac
ctl8 register --memfd --size 4K
exec 7>&-
# The daemon hears of a close after it.
tries=0
exec 7<>"$IOASID_NODE"
until ctl register --memfd --size 8K 2>/dev/null; do
	tries=$((tries + 1))
	[ "$tries" -lt 50 ] || fail "what an open has registered is charged to its user after its end"
	sleep 0.1
done

#!/bin/sh
rule="the administrator's policy says who opens the node and who binds what; refused is with EACCES, and explained"
me=$(id -u)
settings="mode = \"0666\"
[policy]
deny = [65534, \"@65533\"]
bind-others = false
[[policy.bind]]
devices = [\"sim0\"]
allow = [$me]
[[policy.bind]]
devices = [\"sim0\", \"sim1\"]
allow = [54321]
"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

exec 7<>"$IOASID_NODE"
device=$(ctl bind --simulated sim0)
ctl unbind "$device"

# A device that is another's, and one that no rule names.
refused EACCES ctl bind --simulated sim1
explained policy
refused EACCES ctl bind --simulated sim2
explained sim2

# Bytes of permission say yes to these, and the policy no.
if [ "$(id -u)" = 0 ] && setpriv --reuid=65534 --clear-groups true 2>/dev/null; then
	# as USER GROUP: opens the node
	as() {
		# shellcheck disable=SC2016
		setpriv --reuid="$1" --regid="$2" --clear-groups sh -c 'exec 3<>"$1"' - "$IOASID_NODE" 2>&1
	}
	chmod 755 "$work"
	as 65532 65532 || fail "a user whom the policy does not name may not open the node"
	for who in "65534 65532" "65532 65533"; do
		# shellcheck disable=SC2086
		said=$(as $who) && fail "$who may open the node"
		case $said in *'Permission denied'*) ;; *) fail "$who: $said" ;; esac
	done
fi

# shellcheck shell=bash
# shellcheck disable=SC2034 # the checks use them
# What the checks of the laboratory share. To be sourced by bash, with the arguments of the check:
# NODE ADDRESS GROUP DAEMON, an edu device and the process id of the daemon.

if (($# != 4)); then
	usage >&2
	exit 2
fi
node=$1 address=$2 group=$3 daemon=$4
programs=${C_PROGRAMS:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)/target/c}

ok() { echo "ok: $*"; }
source "$(dirname "${BASH_SOURCE[0]}")/pins.sh"

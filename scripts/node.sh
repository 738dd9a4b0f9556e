# shellcheck shell=bash
# A private daemon for scripts that want a node of their own. To be sourced by bash.

# start_node CUSED OPTION...: starts the daemon and waits until its node is there. Sets node_pid.
start_node() {
	local ready
	ready=$(mktemp -u)
	mkfifo "$ready"
	"$@" --ready-fd 9 9>"$ready" &
	node_pid=$!
	# The daemon writes a line when the node is there. If it ends first, read finds the end.
	if ! read -r -t 60 _ <"$ready"; then
		rm -f "$ready"
		return 1
	fi
	rm -f "$ready"
}

# stop_node: ends the daemon that start_node started. Its exit status is the daemon's.
stop_node() {
	[[ -n ${node_pid:-} ]] || return 0
	local pid=$node_pid
	node_pid=
	kill -TERM "$pid" 2>/dev/null || true
	wait "$pid"
}

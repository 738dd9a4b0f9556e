# shellcheck shell=bash
# How often a supervisor answers for a call that a seccomp filter has put before it, from the kernel's
# own trace. To be sourced by bash.

tracing=/sys/kernel/tracing

# SECCOMP_IOCTL_NOTIF_SEND, _IOWR('!', 1, struct seccomp_notif_resp): one for each such call.
notif_send=0xc0182101

# Counts from now on.
start_counting() {
	mkdir -p "$tracing/instances/notified"
	echo "cmd == $notif_send" >"$tracing/instances/notified/events/syscalls/sys_enter_ioctl/filter"
	echo 1 >"$tracing/instances/notified/events/syscalls/sys_enter_ioctl/enable"
}

# How many since start_counting.
answers() { grep -c sys_ioctl "$tracing/instances/notified/trace" || true; }

stop_counting() {
	[[ -d $tracing/instances/notified ]] || return 0
	echo 0 >"$tracing/instances/notified/events/syscalls/sys_enter_ioctl/enable"
	rmdir "$tracing/instances/notified"
}

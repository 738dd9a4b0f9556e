# shellcheck shell=bash
# How often a supervisor has answered for a call that a seccomp filter has put before it, by what
# `ioasid-run --explain=FILE` has written: one line for each. To be sourced by bash.
#
# (The kernel's own trace could tell too. But switching trace events has hung the emulated machine
# under 6.1, which then rewrites its code on all processors.)

# answers FILE: how many so far.
answers() {
	sleep 0.5 # a line is written after the answer
	grep -c '^ioasid-run: thread' "$1" || true
}

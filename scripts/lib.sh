# shellcheck shell=bash
# Shared by the scripts: where the tree is, how progress is told, what must be installed.
# To be sourced by bash.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}

# One line of progress, on standard error, with the minutes since the script began.
say() {
	local mark='[%d:%02d]'
	[[ ! -t 2 ]] || mark='\033[1m[%d:%02d]\033[0m'
	# shellcheck disable=SC2059 # the mark is a format
	printf "$mark %s\n" $((SECONDS / 60)) $((SECONDS % 60)) "$*" >&2
}

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

# need COMMAND=PACKAGE...: installs the Debian packages whose command is missing.
need() {
	local pair missing=()
	for pair in "$@"; do
		command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
	done
	((${#missing[@]})) || return 0
	local install=(apt-get install -y --no-install-recommends "${missing[@]}")
	((EUID == 0)) || die "these packages are missing; run: sudo ${install[*]}"
	say "installing ${missing[*]}"
	mkdir -p "$target"
	{ apt-get update && DEBIAN_FRONTEND=noninteractive "${install[@]}"; } >"$target/apt.log" 2>&1 ||
		die "apt-get failed; see $target/apt.log"
}

# What building needs beyond a Rust toolchain.
need_build_tools() {
	command -v cargo >/dev/null || PATH=$HOME/.cargo/bin:$PATH
	command -v cargo >/dev/null || die "cargo is missing: install a Rust toolchain with rustup"
	need cc=gcc c++=g++
	[[ -e /usr/include/linux/vfio.h ]] || need linux/vfio.h=linux-libc-dev
	[[ -e /usr/include/stdio.h ]] || need stdio.h=libc6-dev
}

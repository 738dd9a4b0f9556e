#!/bin/bash
# package.sh: the Debian package makes an installed machine one that has /dev/ioasid, lets the
# users of its group use it, and leaves nothing when it is purged.
set -euo pipefail

usage() {
	cat <<'END2'
Usage: tests/lab/package.sh PACKAGE ADDRESS GROUP

To be run in the laboratory under systemd, as root. Installs the package, has an ordinary user of the
group ioasid run programs on a simulated device and on the edu device of that PCI address and
VFIO group, and purges it again. IOASID_TEST_INSTALLED names a command to run in between, while the
service runs. C_PROGRAMS names the directory of the compiled programs (default: target/c).
END2
}

if (($# != 3)); then
	usage >&2
	exit 2
fi
package=$1 address=$2 group=$3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
programs=${C_PROGRAMS:-$here/../../target/c}
source "$here/pins.sh"
work=$(mktemp -d)
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT

ok() { echo "ok: [$SECONDS s] $*"; }

# ---------------------------------------------------------------- what there is

# Every file where a service, its package or systemd keep state. What the machine itself writes as it
# runs is not counted: the state of dpkg, of units and of udev, logs, caches.
files() {
	find /etc /run /dev /var/lib /usr/lib/systemd /usr/lib/udev \
		-path /run/lab -prune -o -path /run/systemd/units -prune -o -path /run/systemd/transient -prune -o \
		-path /run/systemd/journal -prune -o -path /run/systemd/show-status -prune -o \
		-path /run/udev -prune -o -path /run/log -prune -o \
		-path /var/lib/dpkg -prune -o -path /dev/char -prune -o -path /dev/pts -prune -o \
		-path /dev/hugepages -prune -o -print | sort
}
# The files of the package that are there.
contents() {
	dpkg --contents "$package" | awk '$1 !~ /^d/ { print substr($6, 2) }' |
		while read -r file; do [[ ! -e $file ]] || echo "$file"; done
}
accounts() { cat /etc/passwd /etc/group /etc/shadow /etc/gshadow; }

as() { # USER COMMAND...
	local user=$1
	shift
	setpriv --reuid="$user" --regid="$user" --init-groups --inh-caps=-all --bounding-set=-all \
		env -i PATH=/usr/bin:/bin HOME=/ "$@"
}
state() { systemctl show --property "$1" --value cused.service; }
serves() { [[ $(state ActiveState) == active && $(stat -c %G:%a /dev/ioasid) == ioasid:660 ]]; }

rm -f /var/lib/man-db/auto-update # an index of all pages takes minutes
useradd --no-create-home alice
useradd --no-create-home mallory
[[ -z $(contents) ]] || die "there already: $(contents)"
files >"$work/files"
accounts >"$work/accounts"

# ---------------------------------------------------------------- install

dpkg --install "$package" >"$work/dpkg" 2>&1 || die "dpkg: $(<"$work/dpkg")"
[[ $(dpkg-query -W -f '${Status}' ioasid) == 'install ok installed' ]] || die "not installed: $(<"$work/dpkg")"
(($(contents | wc -l) > 40)) || die "of the files of the package, only these are there: $(contents)"
[[ $(state ActiveState) == active ]] || die "the service does not run: $(systemctl status cused --no-pager)"
await 10 "the node is $(stat -c %G:%a /dev/ioasid), and not ioasid:660" serves
systemctl is-enabled --quiet cused || die "the service will not start at the next boot"
ok "installed; the service runs, and /dev/ioasid belongs to the group ioasid, 0660"

cmp -s /usr/include/ioasid.h "$here/../../uapi/include/ioasid.h" || die "ioasid.h is another"
ioasidctl --version >/dev/null || die "ioasidctl does not run"
for page in cused.8 ioasidctl.1 ioasidctl-map.1; do
	gzip -dc "/usr/share/man/man${page##*.}/$page.gz" | grep -q '^\.SH SYNOPSIS' || die "the man page $page is none"
done
bash -c 'source /usr/share/bash-completion/completions/ioasidctl && complete -p ioasidctl' >"$work/complete"
grep -q '^Version: ' /usr/share/pkgconfig/ioasid.pc || die "ioasid.pc is empty"
ok "the header, the commands, their pages and completions are there"

# ---------------------------------------------------------------- use

usermod --append --groups ioasid alice
printf '\n[[simulated]]\nname = "sim0"\ngroup = 0\n' >>/etc/cused.toml
before=$(state MainPID)
systemctl restart cused
await 10 "the node did not come back" serves
[[ $(state MainPID) != "$before" ]] || die "systemctl restart restarted nothing"
ok "systemctl restart takes up new settings"

as alice "$programs/first-light-sim" /dev/ioasid sim0 >"$work/out" 2>&1 ||
	die "a user of the group, simulated device: $(<"$work/out")"
ok "a user of the group drives a simulated device"
chown alice "/dev/vfio/$group" # an administrator's udev rule does this
as alice "$programs/first-light-edu" /dev/ioasid "$address" "$group" >"$work/out" 2>&1 ||
	die "a user of the group, edu device: $(<"$work/out")"
ok "a user of the group drives a real device: $(tail -n 1 "$work/out")"
if as mallory "$programs/first-light-sim" /dev/ioasid sim0 >"$work/out" 2>&1; then
	die "a user outside the group may open the node"
fi
grep -q 'Permission denied' "$work/out" || die "refused, but not for permissions: $(<"$work/out")"
ok "a user outside the group may not: $(<"$work/out")"

before=$(state MainPID)
kill -KILL "$before"
comes_back() { serves && [[ $(state MainPID) != "$before" ]]; }
await 10 "the service was not restarted after SIGKILL" comes_back
as alice "$programs/first-light-sim" /dev/ioasid sim0 >"$work/out" 2>&1 || die "after SIGKILL: $(<"$work/out")"
ok "killed, it is there again"

${IOASID_TEST_INSTALLED:-true} || die "the command in between failed"

# ---------------------------------------------------------------- purge

gpasswd --delete alice ioasid >/dev/null
dpkg --purge ioasid >"$work/dpkg" 2>&1 || die "dpkg: $(<"$work/dpkg")"
[[ ! -e /dev/ioasid ]] || die "the node is still there"
[[ -z $(contents) ]] || die "still there: $(contents)"
systemctl daemon-reload
[[ $(state LoadState) == not-found ]] || die "the service is still known"
diff "$work/files" <(files) >"$work/diff" || die "purged, but not all is as it was: $(<"$work/diff")"
diff "$work/accounts" <(accounts) >"$work/diff" || die "the accounts differ: $(<"$work/diff")"
nothing_pinned || die "$(pinned) pages are pinned"
ok "purged: no file, group, node or pinned page is left"

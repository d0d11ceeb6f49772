#!/bin/sh
# Installs what "make build" made, and takes it away again.
#
#   install.sh install | uninstall
#
# PREFIX   /usr/local by default. The PAM module has its helper's path compiled
#          in, so it must be the PREFIX that "make build" was given. systemd and
#          the bus search below /usr and /usr/local only, so with any other
#          PREFIX their files go to /usr/local.
# DESTDIR  staging root for packagers: nothing outside of it is touched, nothing
#          is diverted and no service is asked.
# PAMDIR   directory of PAM modules; found by where pam_unix.so is.
# FORCE=1  uninstall although homes are active.
#
# Everything installed is listed in PREFIX/lib/hearth/manifest, one "file PATH",
# "divert PATH" or "shell PATH" a line; uninstall goes by that list alone.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)
build=${BUILD:-$top/build}
PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}

die() { echo "install.sh: $*" >&2; exit 1; }

# What is /usr must also be spelt so, for there the package has its files.
# The other characters would end up in unit files.
while :; do case $PREFIX in ?*/) PREFIX=${PREFIX%/} ;; *) break ;; esac; done
case $PREFIX in
*[!A-Za-z0-9/._+-]* | *//* | */./* | */../* | */. | */.. | /) die "PREFIX must be a plain path, not '$PREFIX'" ;;
/*) ;;
*) die "PREFIX must be an absolute path, not '$PREFIX'" ;;
esac
case $PREFIX in /usr) found=/usr ;; *) found=/usr/local ;; esac
lib=$PREFIX/lib/hearth
manifest=$DESTDIR$lib/manifest

# live: are we changing the machine we run on?
live() { [ -z "$DESTDIR" ]; }
systemd() { live && [ -d /run/systemd/system ] && command -v systemctl >/dev/null; }

pam_dir() {
	if [ -n "${PAMDIR:-}" ]; then echo "$PAMDIR"; return; fi
	arch=$(uname -m)
	for d in /usr/lib/$arch-linux-gnu/security /lib/$arch-linux-gnu/security /usr/lib64/security /lib64/security /usr/lib/security /lib/security; do
		if [ -e "$DESTDIR$d/pam_unix.so" ] || [ -e "$d/pam_unix.so" ]; then echo "$d"; return; fi
	done
	# Debian's name of an architecture is not always the kernel's.
	for d in /usr/lib/*-linux-gnu*/security; do
		if [ -e "$d/pam_unix.so" ]; then echo "$d"; return; fi
	done
	echo /usr/lib/security
}

record() { grep -Fqx "$1 $2" "$new" || echo "$1 $2" >>"$new"; }

# ours PATH: did the install before this one put it there?
ours() { [ -e "$manifest" ] && grep -Fqx "file $1" "$manifest"; }

# elsewhere: the PREFIX of another tree of ours, if there is one.
elsewhere() {
	for p in /usr /usr/local /opt/*; do
		if [ "$p" != "$PREFIX" ] && [ -e "$DESTDIR$p/lib/hearth/manifest" ]; then echo "$p"; return; fi
	done
}

# An install that breaks off leaves a list of what it did, for uninstall.
finish() {
	if [ -s "$new" ]; then
		if [ -e "$manifest" ]; then sort -u "$new" "$manifest" >"$new.fill"; else cp "$new" "$new.fill"; fi
		mv -f "$new.fill" "$manifest"
	fi
	rm -f "$new" "$new.fill"
}

# put MODE SOURCE TARGET: copy to a temporary name and rename, so that a running
# program is never half replaced.
put() {
	mkdir -p "$DESTDIR$(dirname "$3")"
	cp "$2" "$DESTDIR$3.hearth-new"
	chmod "$1" "$DESTDIR$3.hearth-new"
	mv -f "$DESTDIR$3.hearth-new" "$DESTDIR$3"
	record file "$3"
}

# fill MODE SOURCE TARGET: like put, with @PREFIX@ filled in.
fill() {
	sed "s|@PREFIX@|$PREFIX|g" "$2" >"$new.fill"
	put "$1" "$new.fill" "$3"
	rm -f "$new.fill"
}

# shared TARGET: a path that a package of systemd-homed also has, or will have.
# Its file steps aside for ours and comes back with uninstall.
shared() {
	live || return 0
	command -v dpkg-divert >/dev/null || {
		if [ -e "$1" ] && ! ours "$1"; then
			die "$1 is not ours, and without dpkg-divert it cannot step aside. Choose another PREFIX."
		fi
		return 0
	}
	if [ "$(dpkg-divert --listpackage "$1")" != LOCAL ]; then
		mkdir -p "$(dirname "$1")"
		dpkg-divert --local --rename --add --divert "$1.distrib" "$1" >/dev/null
	elif [ "$(dpkg-divert --truename "$1")" != "$1.distrib" ]; then
		die "$1 is diverted by somebody else already"
	fi
	record divert "$1"
}

install_all() {
	[ -e "$build/bin/homed" ] || die "$build/bin/homed is missing. Run 'make build' first (it needs Go; this does not)."
	if [ -e "$build/prefix" ] && [ "$(cat "$build/prefix")" != "$PREFIX" ]; then
		die "this was built for PREFIX=$(cat "$build/prefix"). Run 'make build PREFIX=$PREFIX' first."
	fi
	# Two trees would share some files, and the first uninstall would take
	# them from the other.
	other=$(elsewhere)
	[ -z "$other" ] || die "ours is installed with PREFIX=$other already. Run 'make uninstall PREFIX=$other' first."
	for f in "$(pam_dir)/pam_home.so" /usr/share/pam-configs/hearth /usr/share/pam-configs/hearth-password /usr/lib/systemd/system-sleep/hearth /etc/profile.d/70-hearth-shell.sh; do
		if [ -e "$DESTDIR$f" ] && ! ours "$f"; then die "$f is there already and not from here. Move it away first."; fi
	done
	mkdir -p "$DESTDIR$lib"
	new=$manifest.new
	: >"$new"
	trap finish EXIT
	trap 'exit 1' HUP INT TERM
	# What was diverted before stays ours to give back.
	if [ -e "$manifest" ]; then grep '^divert ' "$manifest" >"$new" || :; fi

	[ "$PREFIX" != /usr ] || shared /usr/bin/homectl
	put 755 "$build/bin/homectl" "$PREFIX/bin/homectl"
	for p in homed homework pamhome homeshell homelinger; do
		if [ -e "$build/bin/$p" ]; then put 755 "$build/bin/$p" "$lib/$p"; fi
	done
	put 644 "$build/pam_home.so" "$(pam_dir)/pam_home.so"
	if [ -d "$DESTDIR/usr/share/pam-configs" ] || [ -d /usr/share/pam-configs ]; then
		# Two profiles: for password changes the module's place is behind
		# pam_unix, elsewhere before it.
		put 644 "$top/pamhome/shim/hearth.pam-config" /usr/share/pam-configs/hearth
		put 644 "$top/pamhome/shim/hearth-password.pam-config" /usr/share/pam-configs/hearth-password
	fi
	# sshd and others admit no shell that is not in this list.
	if live && [ -e "$lib/homeshell" ]; then
		grep -Fqsx "$lib/homeshell" /etc/shells || echo "$lib/homeshell" >>/etc/shells
		record shell "$lib/homeshell"
	fi

	fill 644 "$here/homed.service.in" "$found/lib/systemd/system/homed.service"
	fill 644 "$here/homed-activate.service.in" "$found/lib/systemd/system/homed-activate.service"
	fill 644 "$here/homed-linger.service.in" "$found/lib/systemd/system/homed-linger.service"
	fill 755 "$here/sleep.in" /usr/lib/systemd/system-sleep/hearth # whatever the PREFIX
	put 644 "$here/shell.sh" /etc/profile.d/70-hearth-shell.sh # shells look nowhere else
	# Some systems' packages have this file here, and it says the same.
	if [ ! -e "$DESTDIR$found/lib/systemd/homed.conf" ] || ours "$found/lib/systemd/homed.conf"; then
		put 644 "$here/homed.conf" "$found/lib/systemd/homed.conf"
	fi

	[ "$PREFIX" != /usr ] || shared /usr/share/dbus-1/system-services/org.freedesktop.home1.service
	fill 644 "$here/org.freedesktop.home1.service.in" "$found/share/dbus-1/system-services/org.freedesktop.home1.service"
	# The bus reads policies from these two folders alone. Ours has a name of
	# its own: policies of several files add up.
	if [ "$PREFIX" = /usr ]; then policy=/usr/share/dbus-1/system.d; else policy=/etc/dbus-1/system.d; fi
	put 644 "$here/org.freedesktop.home1.conf" "$policy/hearth-home1.conf"
	# polkit reads actions here, whatever the PREFIX.
	shared /usr/share/polkit-1/actions/org.freedesktop.home1.policy
	put 644 "$here/org.freedesktop.home1.policy" /usr/share/polkit-1/actions/org.freedesktop.home1.policy

	completion=$PREFIX/share/bash-completion/completions/homectl
	[ "$PREFIX" != /usr ] || shared "$completion"
	put 644 "$here/homectl.bash" "$completion"

	fill 644 "$here/sshd.conf.in" "$PREFIX/share/doc/hearth/sshd.conf"
	for m in "$top"/docs/man/*.[1-8]; do
		[ -e "$m" ] || continue
		put 644 "$m" "$PREFIX/share/man/man${m##*.}/$(basename "$m")"
	done

	# Files of an earlier version that this one no longer has.
	if [ -e "$manifest" ]; then
		while read -r kind path; do
			if [ "$kind" = file ] && ! grep -Fqx "file $path" "$new"; then rm -f "$DESTDIR$path"; fi
		done <"$manifest"
	fi
	mv -f "$new" "$manifest"

	reload
	live || return 0
	cat <<NEXT
Installed below $PREFIX. Next:
  systemctl enable homed.service              start the daemon at boot,
  systemctl restart homed.service             and now, in place of a running systemd-homed
  pam-auth-update --enable hearth hearth-password   unlock homes at login (Debian)
  homectl create NAME                         make a home
NEXT
	if [ -e /usr/share/pam-configs/systemd-homed ]; then
		echo "  pam-auth-update --disable systemd-homed     so that one module alone asks"
	fi
}

# reload lets those read their files again that do not watch them all.
reload() {
	systemd || return 0
	systemctl daemon-reload
	systemctl reload dbus.service 2>/dev/null || :
}

# active_homes names the homes that are open: LUKS homes by their device, others
# by the mount that shows their directory.
active_homes() {
	awk '$4 ~ /\.homedir$/ { sub(".*/", "", $5); printf "%s ", $5 }' /proc/self/mountinfo
	for f in /sys/block/dm-*/dm/name; do
		[ -e "$f" ] || continue
		read -r name <"$f" || continue
		case $name in home-*) printf '%s ' "${name#home-}" ;; esac
	done
}

uninstall_all() {
	if [ ! -e "$manifest" ]; then
		other=$(elsewhere)
		die "nothing of ours is installed: $manifest is missing${other:+. Did you mean PREFIX=$other?}"
	fi
	if live; then
		active=$(active_homes)
		if [ -n "$active" ] && [ "${FORCE:-}" != 1 ]; then
			die "homes are active: $active. Log their users out or run 'homectl deactivate-all', or give FORCE=1."
		fi
		if command -v pam-auth-update >/dev/null && grep -qx 'file /usr/share/pam-configs/hearth' "$manifest"; then
			pam-auth-update --package --remove hearth hearth-password
		fi
		if systemd; then systemctl disable --now homed.service homed-activate.service homed-linger.service || :; fi
	fi
	while read -r kind path; do
		if [ "$kind" = file ]; then rm -f "$DESTDIR$path"; fi
	done <"$manifest"
	while read -r kind path; do
		live || continue
		case $kind in
		divert) dpkg-divert --local --rename --remove "$path" >/dev/null ;;
		shell)
			# grep says 1 where no line is left, 2 where it could not write.
			status=0
			grep -Fvx "$path" /etc/shells >/etc/shells.hearth-new || status=$?
			if [ "$status" -lt 2 ] && chmod 644 /etc/shells.hearth-new; then
				mv -f /etc/shells.hearth-new /etc/shells
			else
				rm -f /etc/shells.hearth-new
				echo "install.sh: $path is still in /etc/shells" >&2
			fi
			;;
		esac
	done <"$manifest"
	rm -f "$manifest"
	rmdir "$DESTDIR$lib" "$DESTDIR$PREFIX/share/doc/hearth" 2>/dev/null || :
	reload
	# A package that came after ours found its unit's name taken, and so did
	# not enable it.
	if systemd && [ -e /usr/lib/systemd/system/systemd-homed.service ] && ! systemctl -q is-enabled systemd-homed.service; then
		echo "systemd-homed is installed and not enabled. To go on with it: systemctl enable --now systemd-homed.service"
	fi
}

case ${1:-} in
install) install_all ;;
uninstall) uninstall_all ;;
*) die "usage: install.sh install | uninstall" ;;
esac

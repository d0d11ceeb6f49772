#!/bin/sh
# Installs the Debian packages that build, demo and tests need, where they are
# missing. With nothing missing it says nothing and takes no time.
set -eu

# program:package, or a file for what has no program.
need='gcc:gcc make:make patchelf:patchelf mmdebstrap:mmdebstrap xz:xz-utils
mkfs.ext4:e2fsprogs mkfs.btrfs:btrfs-progs mkfs.xfs:xfsprogs cryptsetup:cryptsetup-bin
sfdisk:fdisk jq:jq mandoc:mandoc dbus-daemon:dbus-daemon
/usr/include/security/pam_modules.h:libpam0g-dev
/usr/include/linux/errno.h:linux-libc-dev
/usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring'
case ${HEARTH_VM_RUNNER:-} in
kvm | tcg) need="$need qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils" ;;
esac

PATH=$PATH:/usr/sbin:/sbin
missing=
for n in $need; do
	thing=${n%:*}
	case $thing in
	/*) [ -e "$thing" ] || missing="$missing ${n#*:}" ;;
	*) command -v "$thing" >/dev/null || missing="$missing ${n#*:}" ;;
	esac
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "This needs the programs of these Debian packages:$missing" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "Missing packages. Run once:  sudo apt-get install --no-install-recommends$missing" >&2
	exit 1
fi
echo "Installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086
apt-get install -q -y --no-install-recommends $missing </dev/null

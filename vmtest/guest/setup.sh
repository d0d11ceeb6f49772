#!/bin/sh
# Makes a fresh Debian tree ($1) into a guest. Part of the image's recipe: a
# change here builds new images.
set -eu
root=$1

echo hearth >"$root/etc/hostname"
printf '127.0.0.1 localhost hearth\n::1 localhost\n' >"$root/etc/hosts"
printf '/dev/root / auto defaults 0 1\n' >"$root/etc/fstab"
# Present but empty: not a first boot. The id comes by the kernel command line.
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
echo 'root:hearth' | chroot "$root" chpasswd

# The user-mode kernel's modules come in a tar beside this script.
for version in "$root"/usr/lib/modules/*; do
	chroot "$root" depmod "${version##*/}"
done
printf 'loop\ndm-crypt\n' >"$root/etc/modules-load.d/hearth.conf"

# What updates /etc and /var after a change of /usr has nothing to do.
: >"$root/etc/motd"
touch "$root/etc/.updated" "$root/var/.updated"

# Nothing but the test is to take the guest's time.
for unit in ssh.service ssh.socket smbd.service nmbd.service winbind.service \
	samba-ad-dc.service cron.service greetd.service apt-daily.timer apt-daily-upgrade.timer \
	dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
	xfs_scrub_all.timer xfs_healer_start.service fstrim.timer btrfs-scrub.timer man-db.timer \
	systemd-networkd.service systemd-networkd.socket systemd-networkd-wait-online.service \
	systemd-timesyncd.service systemd-pstore.service remote-fs.target; do
	chroot "$root" systemctl disable --quiet "$unit" 2>/dev/null || true
done

# Plymouth would take the console: its units come back where a test wants it.
mkdir -p "$root/usr/lib/hearth-guest"
(
	cd "$root"
	units=$(find usr/lib/systemd/system -name '*plymouth*')
	# Without its units its scripts would become some.
	rm -f etc/init.d/plymouth* etc/rc?.d/*plymouth*
	# shellcheck disable=SC2086
	tar --create --file usr/lib/hearth-guest/plymouth.tar --no-recursion $units
	# shellcheck disable=SC2086
	rm $units
)

mkdir -p "$root/etc/systemd/system/sysinit.target.wants"
cat >"$root/usr/lib/hearth-guest/unpack" <<'END'
#!/bin/sh
# Unpacks the payload disk, a bare tar, once per payload: what a test changed
# since then stays changed over a restart.
set -eu
read -r line </proc/cmdline
want=
for word in $line; do
	case $word in hearth.payload=*) want=${word#*=} ;; esac
done
stamp=/var/lib/hearth-guest/payload
have=
[ ! -f $stamp ] || read -r have <$stamp || true
[ -n "$want" ] && [ "$want" != "$have" ] || exit 0
for disk in /dev/ubdb /dev/vdb; do
	[ -b $disk ] || continue
	tar --extract --file $disk --directory / --numeric-owner --same-permissions \
		--keep-directory-symlink --no-overwrite-dir
	mkdir -p /var/lib/hearth-guest
	sync
	echo "$want" >$stamp
	sync
	exec systemctl daemon-reload
done
END
chmod 755 "$root/usr/lib/hearth-guest/unpack"

cat >"$root/etc/systemd/system/hearth-payload.service" <<'END'
[Unit]
Description=Unpack the test's payload
DefaultDependencies=no
After=systemd-remount-fs.service systemd-tmpfiles-setup-dev.service
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/hearth-guest/unpack
END
cat >"$root/etc/systemd/system/hearth-agent.service" <<'END'
[Unit]
Description=The test's hand in this guest
DefaultDependencies=no
Wants=hearth-payload.service
After=hearth-payload.service

[Service]
ExecStart=/usr/lib/hearth-guest/agent
Restart=on-failure
RestartSec=1
OOMPolicy=continue
TasksMax=infinity
LimitCORE=infinity
END
ln -s ../hearth-payload.service ../hearth-agent.service "$root/etc/systemd/system/sysinit.target.wants/"

package stories

import (
	"bytes"
	crand "crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hearth/internal/secret"
	"hearth/internal/testenv"
	"hearth/records"
	"hearth/vmtest"
)

// A step is one thing that somebody does with the real programs.
type step struct {
	name, script string
	alone        bool // it needs dora and nothing else, and leaves her as she was
}

// steps use, besides shell: hc for homectl, b to call a method of the manager,
// M for its address, P and N for the password and another one, S for {"password":[P]}, as to be
// somebody. Every home they make has the same user ID with both daemons.
var steps = []step{
	// Nothing there.
	{"list nothing", `hc list; hc list -j; hc list --no-legend`, false},
	{"no such home", `for v in inspect activate deactivate authenticate lock unlock remove unregister; do hc $v nosuch; done; PASSWORD=$P hc update nosuch --real-name=X; hc resize nosuch 100M; PASSWORD=$P NEWPASSWORD=$N hc passwd nosuch; PASSWORD=$P hc with nosuch -- true`, true},
	{"nothing to do", `hc lock-all; hc deactivate-all; hc rebalance`, true},
	{"adopt what is none", `hc adopt relative/path; hc adopt /nonexistent.home; hc adopt /etc/passwd; hc adopt /; hc adopt /home/../x.home`, false},
	{"keys of a new machine", `hc list-signing-keys --json=short | jq -c '[.[].name]'; hc get-signing-key foo; hc remove-signing-key local.public; hc remove-signing-key foo.public; ls -l /var/lib/systemd/home | awk 'NR>1{print $1, $NF}'`, false},
	{"keys that are none", `echo x >/tmp/x.public; hc add-signing-key /tmp/x.public; hc add-signing-key --key-name=foo - </tmp/x.public; hc add-signing-key --key-name=local.public - </tmp/x.public`, false},

	// Records that are refused.
	{"bad names", `for u in root daemon audio _foo systemd-foo; do NEWPASSWORD=$P hc create $u --storage=directory; done`, true},
	{"bad records", `c() { b CreateHome s "{\"userName\":\"xx2\",\"disposition\":\"regular\"$1}"; }
		b CreateHome s '{nope'; b CreateHome s '[]'; b CreateHome s '{}'; b CreateHome s '{"userName":5}'; c ',"status":{}'; c ',"binding":{}'; c ',"uid":60300,"gid":60301'; c ',"gid":60300'
		c ',"service":"x"'; c ',"blobDirectory":"/x"'; c ',"storage":"classic"'; c ',"storage":"directory"'; c ',"storage":"bogus"'; c ',"realm":"x."'; c ',"uid":0'; c ',"uid":61184'; c ',"uid":60600'; c ',"signature":[{"data":"AAAA","key":"x"}]'`, true},
	{"weak password", `NEWPASSWORD=short hc create weak --storage=directory`, false},
	{"unknown file system", `NEWPASSWORD=$P hc create xx3 --storage=luks --fs-type=vfat --enforce-password-policy=no`, false},
	{"image exists", `NEWPASSWORD=$P hc create xx4 --storage=directory --image-path=/etc --enforce-password-policy=no`, false},
	{"home directory populated", `mkdir -p /home/xx5/x; NEWPASSWORD=$P hc create xx5 --storage=directory --enforce-password-policy=no; rm -r /home/xx5; mkdir /home/xx5; NEWPASSWORD=$P hc create xx5 --storage=directory --enforce-password-policy=no; rmdir /home/xx5`, false},
	{"no subvolumes", `NEWPASSWORD=$P hc create xx6 --storage=subvolume --enforce-password-policy=no; hc list --no-legend; hc remove xx6`, false},

	// A directory.
	{"create a directory", `NEWPASSWORD=$P hc create dora --storage=directory --real-name='Dora D' --alias=dodo --member-of=audio,video --shell=/bin/sh --nice=3 --setenv=A=b --ssh-authorized-keys='ssh-ed25519 AAAA dora@x' --enforce-password-policy=no --rate-limit-burst=1000; stat -c '%A %U %n' /home/dora.homedir /var/lib/systemd/home/dora.identity`, false},
	{"name, alias and UID taken", `NEWPASSWORD=$P hc create dora --storage=directory; NEWPASSWORD=$P hc create dodo --storage=directory; NEWPASSWORD=$P hc create xx7 --alias=dora --storage=directory; NEWPASSWORD=$P hc create xx7 --uid=$(id -u dora) --storage=directory --enforce-password-policy=no`, false},
	{"list", `hc list; hc list -j`, true},
	{"inspect", `hc inspect dora; hc inspect dodo; hc inspect $(id -u dora) nosuch`, true},
	{"inspect as JSON", `hc inspect -j dora; hc inspect --json=short dora`, true},
	{"inspect -E", `hc inspect -E dora; hc inspect -EE dora; hc inspect --export-format=minimal dora`, true},
	{"record on disk", `jq -c 'keys_unsorted' /var/lib/systemd/home/dora.identity; jq -c keys_unsorted /home/dora.homedir/.identity; jq . /var/lib/systemd/home/dora.identity; ls -la /home/dora.homedir | awk 'NR>1{print $1,$3,$NF}'`, true},
	{"getent", `getent passwd dora dodo $(id -u dora); getent group dora $(id -u dora); getent shadow dora; getent initgroups dora; id dora; getent passwd | grep -c dora; getent group audio video; getent passwd nosuch`, true},
	{"userdbctl user", `u() { userdbctl --no-pager "$@"; }; u user dora; u user dora --output=classic; u user dora --output=table; u user dora -j | jq -S .; u user dodo --output=classic; u user nosuch; u user -s io.systemd.Home --output=classic; u user dora --service=io.systemd.Home --output=classic; u user -R -B --output=classic; u user -z do --output=classic; u user $(id -u dora) --output=classic`, true},
	{"userdbctl group", `u() { userdbctl --no-pager "$@"; }; u group dora; u group dora -j | jq -S .; u group -s io.systemd.Home --output=classic; u groups-of-user dora; u users-in-group audio; u users-in-group dora; u groups-of-user nosuch`, true},
	{"userdbctl keys", `u() { userdbctl --no-pager "$@"; }; u ssh-authorized-keys dora; u ssh-authorized-keys nosuch; u services`, true},
	{"varlinkctl", `s=/run/systemd/userdb/io.systemd.Home; v() { timeout 20 varlinkctl --no-pager "$@"; }; v call -j $s io.systemd.UserDatabase.GetUserRecord '{"userName":"dora","service":"io.systemd.Home"}'; v call -j --more $s io.systemd.UserDatabase.GetUserRecord '{"service":"io.systemd.Home"}'
		v call -j $s io.systemd.UserDatabase.GetGroupRecord '{"gid":'$(id -u dora)',"service":"io.systemd.Home"}'; v call -j --more $s io.systemd.UserDatabase.GetMemberships '{"service":"io.systemd.Home"}'; v call -j $s io.systemd.UserDatabase.GetUserRecord '{"userName":"dora","service":"x"}'
		v call -j $s io.systemd.UserDatabase.GetUserRecord '{"userName":"a/b","service":"io.systemd.Home"}'; v call -j $s io.systemd.UserDatabase.Nope '{}'; v call -j $s io.systemd.service.Ping '{}'; v call -j $s io.systemd.service.GetLogLevel '{}'`, true},
	{"varlinkctl introspect", `s=/run/systemd/userdb/io.systemd.Home; v() { timeout 20 varlinkctl --no-pager "$@"; }; v list-interfaces $s; v list-methods $s; for i in $(v list-interfaces $s); do v introspect $s $i | grep -v '^[[:space:]]*#'; done; stat -c '%A %U' $s; v validate-idl $s io.systemd.UserDatabase`, true},
	{"busctl introspect", `for o in "" /home /home/dora /home/$(id -u dora); do busctl --xml-interface introspect org.freedesktop.home1 /org/freedesktop/home1$o; done; busctl --xml-interface introspect org.freedesktop.home1 /org/freedesktop/LogControl1; busctl tree --list org.freedesktop.home1; busctl introspect org.freedesktop.home1 /org/freedesktop/home1/home/dora | awk '{print $1,$2,$3,$NF}'`, true},
	{"busctl properties", `for x in UserName UID UnixRecord State UserRecord Nope; do busctl get-property org.freedesktop.home1 /org/freedesktop/home1/home/dora org.freedesktop.home1.Home $x; done; busctl get-property org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.home1.Manager AutoLogin
		busctl set-property org.freedesktop.home1 /org/freedesktop/home1/home/dora org.freedesktop.home1.Home State s x; busctl -j call org.freedesktop.home1 /org/freedesktop/home1/home org.freedesktop.DBus.ObjectManager GetManagedObjects; busctl get-property org.freedesktop.home1 /org/freedesktop/LogControl1 org.freedesktop.LogControl1 LogLevel LogTarget SyslogIdentifier`, true},
	{"busctl look-ups", `b GetHomeByName s dora; b GetHomeByName s dodo; b GetHomeByName s dora@x; b GetHomeByName s ''; b GetHomeByUID u $(id -u dora); b GetHomeByUID u 1; b GetHomeByUID u 65535; b ListHomes; b Nope; b GetHomeByName u 5; busctl call org.freedesktop.home1 /org/freedesktop/home1/home/nosuch org.freedesktop.home1.Home Deactivate; b ListSigningKeys | cut -c1-40`, true},
	{"not active", `hc deactivate dora; hc lock dora; PASSWORD=$P hc unlock dora; b RefHome sb dora false; b ReleaseHome s dora; b ActivateHomeIfReferenced ss dora "$S"; b FixateHome ss dora "$S"; b RealizeHome ss dora "$S"`, true},
	{"wrong password", `PASSWORD=wrong hc activate dora; PASSWORD=wrong hc authenticate dora; b AcquireHome ssb dora '{"password":["wrong"]}' false; b ActivateHome ss dora '{}'; b ActivateHome ss dora 'x'; b ActivateHome ss dora '{"password":5}'`, false},
	{"authenticate", `PASSWORD=$P hc authenticate dora`, true},
	{"activate", `PASSWORD=$P hc activate dora; findmnt -n -o TARGET,FSROOT /home/dora | tr -s ' '; stat -c '%A %U %G' /home/dora; ls -A /home/dora; PASSWORD=$P hc activate dora`, false},
	{"record while active", `hc inspect dora; hc inspect -j dora | jq -S .status; getent passwd dora; userdbctl user dora -j | jq -S .status; busctl get-property org.freedesktop.home1 /org/freedesktop/home1/home/dora org.freedesktop.home1.Home State`, false},
	{"loginctl", `loginctl list-users --no-legend | grep -v root; loginctl user-status dora --no-pager; loginctl enable-linger dora; ls /var/lib/systemd/linger; loginctl disable-linger dora`, false},
	{"while active", `hc remove dora; hc unregister dora; hc lock dora; PASSWORD=$P hc unlock dora; b RealizeHome ss dora "$S"; b FixateHome ss dora "$S"; hc authenticate dora </dev/null`, false},
	{"update while active", `PASSWORD=$P hc update dora --real-name='Dora E' --nice=4; hc inspect -j dora | jq -c '[.realName,.nice,.status[].state]'; jq -r .realName /home/dora/.identity`, false},
	{"passwd while active", `PASSWORD=$P NEWPASSWORD=$N hc passwd dora; PASSWORD=$N hc authenticate dora; PASSWORD=$N NEWPASSWORD=$P hc passwd dora; PASSWORD=wrong NEWPASSWORD=$N hc passwd dora`, false},
	{"busy", `systemd-run --quiet -p Type=exec --unit=busy --working-directory=/home/dora sleep 1000; b DeactivateHome s dora; st dora; systemctl stop busy.service`, false},
	{"deactivate", `for i in 1 2 3 4 5; do b DeactivateHome s dora && break; sleep 1; done 2>/dev/null; hc deactivate dora; findmnt -n /home/dora; stat -c '%A %U %n' /home/dora`, false},
	{"with", `PASSWORD=$P hc with dora -- sh -c 'pwd; echo $HOME; exit 7'; settle dora`, true},

	// Changes.
	{"update", `PASSWORD=$P hc update dora --real-name='Dora F' --email-address=d@x.org --timezone=Europe/Berlin; hc inspect -j dora | jq -c '[.realName,.emailAddress,.timeZone]'; jq -c '[.realName,.emailAddress]' /home/dora.homedir/.identity; PASSWORD=wrong hc update dora --real-name=X; hc update dora; hc inspect -j dora | jq -r .realName`, false},
	{"update offline", `hc update dora --offline --real-name='Dora G'; hc inspect -j dora | jq -r .realName; jq -r .realName /home/dora.homedir/.identity; PASSWORD=$P hc activate dora && jq -r .realName /home/dora/.identity; hc deactivate dora`, true},
	{"updates that are refused", `old=$(hc inspect -EE dora); r=$(hc inspect -j dora | jq -c 'del(.binding,.status,.signature)')
		b UpdateHome s "$(jq -c '.lastChangeUSec=1' <<<$r)"; b UpdateHome s "$(jq -c '.realName="other"' <<<$r)"; b UpdateHome s "$(jq -c '.lastChangeUSec+=1|.realm="x.org"' <<<$r)"; b UpdateHome s "$(jq -c '.status={}' <<<$r)"
		b UpdateHome s "$(jq -c '.lastChangeUSec+=1|.signature=[{"data":"AAAA","key":"x"}]' <<<$r)"; b UpdateHome s '{'; b UpdateHome s '{"userName":"nosuch"}'; b UpdateHomeEx 'sa{sh}t' "$r" 0 2; b UpdateHome s "$r"; hc inspect -j dora | jq -r .realName`, false},
	{"passwd", `PASSWORD=$P NEWPASSWORD=$N hc passwd dora; PASSWORD=$P hc authenticate dora; PASSWORD=$N hc authenticate dora; PASSWORD=$N NEWPASSWORD=$P hc passwd dora; b ChangePasswordHome sss dora '{}' '{}'; b ChangePasswordHome sss dora "$S" '{"password":["wrong"]}'`, false},
	{"weak new password", `PASSWORD=$P hc update dora --enforce-password-policy=yes; b ChangePasswordHome sss dora '{"password":["abc"]}' "$S"; b ChangePasswordHome sss dora '{"password":["abcdedcba1abcdedcba"]}' "$S"; b ChangePasswordHome sss dora "{\"password\":[\"${P}x\"]}" "$S"; b ChangePasswordHome sss dora '{"password":["dora-dora-dora-7"]}' "{\"password\":[\"${P}x\"]}"; b ChangePasswordHome sss dora "$S" "{\"password\":[\"${P}x\"]}"; PASSWORD=${P}x hc update dora --enforce-password-policy=no; b ChangePasswordHome sss dora "$S" "{\"password\":[\"${P}x\"]}"; PASSWORD=$P hc authenticate dora`, false},
	{"password age", `PASSWORD=$P hc update dora --password-change-min=1d; PASSWORD=$P NEWPASSWORD=$N hc passwd dora; hc inspect dora; PASSWORD=$P hc update dora --password-change-min=`, false},
	{"resize a directory", `PASSWORD=$P hc resize dora 1G; PASSWORD=$P hc resize dora min; b ResizeHome sts dora 18446744073709551615 "$S"; hc inspect -j dora | jq -c '[.perMachine, .diskSize]'`, false},
	{"blobs", `printf 'GIF89a' >/tmp/face; PASSWORD=$P hc update dora --avatar=/tmp/face; hc inspect -j dora | jq -c .blobManifest; ls -l /var/cache/systemd/home/dora | awk 'NR>1{print $1,$3,$NF}'; ls -lA /home/dora.homedir/.identity-blob | awk 'NR>1{print $1,$3,$NF}'; PASSWORD=$P hc update dora --avatar=; hc inspect -j dora | jq -c .blobManifest; ls /var/cache/systemd/home/dora`, false},
	{"locked account", `PASSWORD=$P hc update dora --locked=yes; hc inspect dora; PASSWORD=$P hc activate dora; hc deactivate dora; PASSWORD=$P hc update dora --locked=no`, false},
	{"recovery key", `NEWPASSWORD=$P hc create rec --storage=directory --enforce-password-policy=no --recovery-key=yes --recovery-key-file=/tmp/rec.key; PASSWORD=$(cat /tmp/rec.key) hc authenticate rec; hc inspect -j rec | jq -c '[.recoveryKeyType, (.privileged.recoveryKey|length)]'; hc inspect rec | grep -i recovery; hc remove rec; rm -f /tmp/rec.key`, false},
	{"rate limit", `NEWPASSWORD=$P hc create rita --storage=directory --enforce-password-policy=no --rate-limit-burst=2 --rate-limit-interval=1h; for i in 1 2 3; do b AuthenticateHome ss rita '{}' 2>&1 | sed 's/in [0-9].*!/in T!/'; done; PASSWORD=$P hc activate rita; hc inspect -j rita | jq -c '.status[]|[.rateLimitCount,.badAuthenticationCounter,.goodAuthenticationCounter]'; hc inspect rita | grep -iE 'limit|auth' ; hc remove rita`, false},

	// Those without rights.
	{"a stranger", `as plain hc list; as plain hc inspect dora; as plain hc inspect -j dora; for v in activate authenticate deactivate lock remove unregister; do PASSWORD=$P as plain hc $v dora; done; PASSWORD=$P as plain hc update dora --real-name=X; as plain hc adopt /home/x.home; as plain hc lock-all; as plain hc deactivate-all; as plain hc rebalance; NEWPASSWORD=$P as plain hc create xx9; as plain userdbctl user dora -j | jq -S .; as plain hc add-signing-key /tmp/x.public; as plain hc list-signing-keys | wc -l`, false},
	{"the user", `as dora hc inspect; as dora hc inspect -j | jq -c 'keys'; PASSWORD=$P as dora hc authenticate; PASSWORD=$P as dora hc activate; as dora hc deactivate; PASSWORD=$P as dora hc update dora --nice=1; as dora hc remove dora; PASSWORD=$P NEWPASSWORD=$N as dora hc passwd dora; PASSWORD=$N NEWPASSWORD=$P as dora hc passwd; st dora; hc deactivate dora`, false},
	{"what only root calls", `for c in "DeactivateHome s dora" "LockHome s dora" "UnlockHome ss dora {}" "FixateHome ss dora {}" "RefHome sb dora false" "ReleaseHome s dora" LockAllHomes DeactivateAllHomes Rebalance Nope "GetHomeByName s dora" ListHomes; do as plain timeout 30 busctl call $M $c; done; as plain busctl get-property org.freedesktop.home1 /org/freedesktop/home1/home/dora org.freedesktop.home1.Home State; as plain busctl -j call org.freedesktop.home1 /org/freedesktop/home1/home org.freedesktop.DBus.ObjectManager GetManagedObjects; as plain busctl set-property org.freedesktop.home1 /org/freedesktop/LogControl1 org.freedesktop.LogControl1 LogLevel s debug`, true},

	// Records that come and go.
	{"unregister", `hc inspect -E dora >/tmp/dora.json; hc unregister dora; hc list --no-legend; hc inspect dora; ls /var/lib/systemd/home; b GetUserRecordByName s dora`, false},
	{"not fixated", `PASSWORD=$P hc update dora --nice=1; b ResizeHome sts dora 94371840 '{}'; b ChangePasswordHome sss dora '{}' '{}'; b RefHome sb dora false; b RealizeHome ss dora '{}'; hc deactivate dora; hc unregister dora; b FixateHome ss dora '{}'; b FixateHome ss dora '{"password":["wrong"]}'; st dora`, false},
	{"fixate", `b FixateHome ss dora "$S"; st dora; hc inspect -j dora | jq -c '[.realName,.status[].signedLocally]'; hc unregister dora; PASSWORD=$P hc activate dora; st dora; hc deactivate dora`, false},
	{"register", `hc unregister dora; mv /home/dora.homedir /home/.dora; sleep 1; hc list --no-legend; hc register /tmp/dora.json; hc list --no-legend; hc register /tmp/dora.json; PASSWORD=$P hc activate dora; hc deactivate dora; PASSWORD=$P hc authenticate dora; b ReleaseHome s dora; b AcquireHome ssb dora '{}' false; PASSWORD=$P hc update dora --nice=9; hc update dora --offline --nice=9; hc inspect -j dora | jq -c '[.nice,.status[].state]'; mv /home/.dora /home/dora.homedir; st dora; PASSWORD=$P hc activate dora; hc deactivate dora`, false},
	{"records to register that are refused", `for r in '{' '{"userName":"dora"}' '{"userName":"hugo","disposition":"system"}' "$(jq -c '.userName="hugo"' /tmp/dora.json)" '{"userName":"hugo","disposition":"regular","storage":"directory","signature":[]}'; do b RegisterHome s "$r"; done; st hugo; b ActivateHome ss hugo "$S"; b RealizeHome ss hugo "$S"; hc remove hugo`, false},
	{"adopt", `hc unregister dora; mv /home/dora.homedir /srv/; sleep 1; hc list --no-legend; hc adopt /srv/dora.homedir; hc list --no-legend; PASSWORD=$P hc activate dora; st dora; hc deactivate dora; hc inspect -j dora | jq -r '.binding[].imagePath'; hc unregister dora; mv /srv/dora.homedir /home/; sleep 1; PASSWORD=$P hc activate dora; hc deactivate dora`, false},
	{"found things", `mkdir /home/fred.homedir; : >/home/gina.home; mkdir /home/odd.home; : >/home/odd.homedir; mkdir /home/_bad.homedir; sleep 1; hc list --no-legend; hc inspect fred gina; b GetUserRecordByName s fred; PASSWORD=$P hc activate fred; PASSWORD=$P hc activate gina; rm -r /home/fred.homedir /home/gina.home /home/odd.home /home/odd.homedir /home/_bad.homedir; sleep 1; hc list --no-legend`, false},
	{"foreign keys", `hc register /tmp/kim.json; hc add-signing-key /tmp/other.public; hc add-signing-key /tmp/other.public; hc add-signing-key --key-name=z.public /tmp/other.public; hc list-signing-keys --json=short | jq -c '[.[].name]'; hc get-signing-key other.public nosuch.public; hc register /tmp/kim.json; hc list --no-legend; hc inspect -j kim | jq -c '.status[].signedLocally'; hc inspect kim
		b RealizeHome ss kim '{"password":["wrong"]}'; b RealizeHome ss kim "$S"; PASSWORD=$P hc activate kim; hc deactivate kim; PASSWORD=$P NEWPASSWORD=$N hc passwd kim; PASSWORD=$P hc update kim --nice=1; PASSWORD=$P hc resize kim 1G; hc remove-signing-key other.public nosuch.public; st kim; PASSWORD=$P hc authenticate kim; hc remove kim`, false},
	{"signals of a life", `busctl --json=short --match="type='signal',sender='org.freedesktop.home1'" monitor >/tmp/signals & pid=$!; for i in $(seq 50); do [ -s /tmp/signals ] && break; hc list >/dev/null; busctl call org.freedesktop.home1 /org/freedesktop/LogControl1 org.freedesktop.DBus.Peer Ping; sleep 0.1; [ $i = 20 ] && break; done
		NEWPASSWORD=$P hc create lisa --storage=directory --enforce-password-policy=no; sleep 0.5; PASSWORD=$P hc activate lisa; sleep 0.5; PASSWORD=$P hc update lisa --nice=2; sleep 0.5; PASSWORD=$P NEWPASSWORD=$N hc passwd lisa; sleep 0.5; hc deactivate lisa; sleep 0.5; hc remove lisa; sleep 1; kill $pid; wait $pid 2>/dev/null
		jq -c 'select(.type=="signal" and .path!="/org/freedesktop/home1")|[.path,.interface,.member,.payload.type,.payload.data]' /tmp/signals`, false},

	// An image.
	{"create an image", `NEWPASSWORD=$P hc create lux --storage=luks --fs-type=ext4 --disk-size=64M $CHEAP --rate-limit-burst=1000; stat -c '%A %U %s' /home/lux.home; hc inspect lux; hc inspect -j lux | jq -S .`, false},
	{"activate an image", `PASSWORD=wrong hc activate lux; PASSWORD=$P hc activate lux; hc inspect lux; hc inspect -j lux | jq -S .status; findmnt -n -o SOURCE,TARGET,FSTYPE,OPTIONS /home/lux | sed "s,^/dev/mapper/home-lux,$(readlink -f /dev/mapper/home-lux),"; getfattr -d /home/lux.home 2>/dev/null; ls -A /home/lux`, false},
	{"lock", `hc lock lux; st lux; hc lock lux; PASSWORD=$P hc activate lux; hc deactivate lux; PASSWORD=$P hc authenticate lux; hc remove lux; hc unregister lux; b ReleaseHome s lux; b RefHome sb lux false; b ResizeHome sts lux 94371840 '{}'; b ChangePasswordHome sss lux '{}' "$S"; b FixateHome ss lux '{}'; b RealizeHome ss lux '{}'; hc inspect lux; hc lock-all; getent passwd lux; good lux`, false},
	{"unlock", `PASSWORD=wrong hc unlock lux; st lux; PASSWORD=$P hc unlock lux; st lux; PASSWORD=$P hc unlock lux; hc lock lux; b AcquireHome ssb lux "$S" false; settle lux; PASSWORD=$P hc activate lux; st lux; good lux`, false},
	{"lock-all", `PASSWORD=$P timeout 60 env SYSTEMD_PLEASE_SUSPEND_HOME=1 homectl --no-ask-password with lux -- sh -c 'homectl lock-all; homectl list --no-legend' ; st lux; PASSWORD=$P hc unlock lux; st lux; settle lux; PASSWORD=$P hc activate lux; good lux`, false},
	{"resize an open image", `PASSWORD=$P hc resize lux 50M; PASSWORD=$P hc resize lux 80M; stat -c %s /home/lux.home; PASSWORD=$P hc resize lux 50%; hc resize lux banana; hc inspect -j lux | jq -c '.perMachine|map(del(.matchMachineId))'; hc rebalance; good lux`, false},
	{"resize a closed image", `hc deactivate lux; st lux; PASSWORD=$P hc resize lux 64M; stat -c %s /home/lux.home; PASSWORD=wrong hc resize lux 70M; PASSWORD=$P hc resize lux 70M; stat -c %s /home/lux.home; b ResizeHome sts lux 18446744073709551615 "$S"; b ResizeHome sts lux 1048576 "$S"; hc inspect -j lux | jq -S -c '.perMachine|map(del(.matchMachineId))'; good lux`, false},
	{"image in use", `hc deactivate lux; flock /home/lux.home sleep 1000 & pid=$!; sleep 0.5; PASSWORD=$P hc activate lux; PASSWORD=$P hc authenticate lux; kill $pid; wait $pid 2>/dev/null; pkill -P $pid 2>/dev/null; fuser -k /home/lux.home >/dev/null 2>&1; true; good lux`, false},
	{"absent", `mv /home/lux.home /home/.lux; st lux; PASSWORD=$P hc activate lux; PASSWORD=$P hc authenticate lux; PASSWORD=$P hc with lux -- true; b RefHome sb lux false; b FixateHome ss lux '{}'; hc deactivate lux; hc lock lux; hc inspect lux; mv /home/.lux /home/lux.home; st lux`, false},
	{"dirty", `setfattr -n user.home-dirty -v 1 /home/lux.home; st lux; hc inspect lux; hc deactivate lux; b RefHome sb lux false; b RealizeHome ss lux "$S"; PASSWORD=$P hc activate lux; st lux; hc deactivate lux; st lux`, false},
	{"update and passwd of an image", `PASSWORD=$P hc update lux --real-name='Lux L'; PASSWORD=$P NEWPASSWORD=$N hc passwd lux; PASSWORD=$P hc activate lux; PASSWORD=$N hc activate lux; hc update lux --no-ask-password --nice=1; PASSWORD=$N NEWPASSWORD=$P hc passwd lux; hc inspect -j lux | jq -c '[.realName,.nice,.status[].state]'; jq -c '[.realName,.nice]' /home/lux/.identity; hc deactivate lux`, false},
	{"keep an image's record elsewhere", `hc unregister lux; hc list --no-legend; b ActivateHome ss lux '{}'; PASSWORD=$P hc activate lux; hc inspect -j lux | jq -S 'del(.status)'; hc deactivate lux`, false},
	{"btrfs, with a size that moves", `NEWPASSWORD=$P hc create bea --storage=luks --fs-type=btrfs --disk-size=300M $CHEAP; PASSWORD=$P hc activate bea; hc inspect bea | grep -vE 'Disk|Last|Auth'; hc rebalance; hc inspect -j bea | jq -c '.status[]|[.state,.fileSystemType]'; hc deactivate bea; hc remove bea`, false},
	{"a subvolume", `truncate -s 200M /tmp/b.img; mkfs.btrfs -q /tmp/b.img; mkdir -p /mnt/b; mount -o loop /tmp/b.img /mnt/b; NEWPASSWORD=$P hc create suki --storage=subvolume --image-path=/mnt/b/suki.homedir --enforce-password-policy=no; PASSWORD=$P hc activate suki; hc inspect -j suki | jq -S 'del(.privileged,.signature)'; findmnt -n -o FSTYPE /home/suki; PASSWORD=$P hc resize suki 100M; hc lock suki; hc deactivate suki; hc remove suki; ls /mnt/b; umount /mnt/b; rm /tmp/b.img`, false},
	{"several at once", `PASSWORD=$P hc activate lux dora; hc deactivate-all; st lux dora; hc inspect lux nosuch dora | grep -c User; hc remove nosuch lux`, false},
	{"restart", `PASSWORD=$P hc activate dora; systemctl restart systemd-homed.service; hc list --no-legend; st dora; b RefHome sb nosuch true; hc deactivate dora; hc list --no-legend`, false},
	{"the end", `hc remove dora; hc list; ls -A /home /var/lib/systemd/home /var/cache/systemd/home; getent passwd dora`, false},
}

const scriptHead = `set -u; exec </dev/null; export TZ=UTC LC_ALL=C.UTF-8 SYSTEMD_COLORS=0 SYSTEMD_PAGER= COLUMNS=200
M="org.freedesktop.home1 /org/freedesktop/home1 org.freedesktop.home1.Manager"; P='%s'; N='%s'; S='{"password":["'$P'"]}'; CHEAP='%s'
hc() { local limit=30; [ "${PASSWORD-}" != wrong ] || limit=10; timeout $limit /usr/bin/homectl --no-ask-password "$@" || echo "status $?"; }
b() { timeout 60 busctl --timeout=50 call $M "$@" || echo "status $?"; }
st() { local u; for u; do /usr/bin/homectl list --no-legend | awk -v u=$u '$1==u{print u, $4}'; done; }
good() { /usr/bin/homectl inspect -j $1 | jq -c '[.status[]|.goodAuthenticationCounter,.badAuthenticationCounter]'; }
settle() { local i; for i in $(seq 40); do [ "$(st $1)" = "$1 inactive" ] && break; sleep 0.5; done; st $1; }
as() { local u=$1 id; shift; id=$(id -u $u); if [ "$1" = hc ]; then shift; set -- /usr/bin/homectl --no-ask-password "$@"; fi; timeout 60 setpriv --reuid=$id --regid=$id --clear-groups "$@" || echo "status $?"; }
run() { local t=$SECONDS; echo "### $1"; eval "$2" >/tmp/out 2>/tmp/err; cat /tmp/out; sed 's/^/! /' /tmp/err; echo "= $(/usr/bin/homectl list --no-legend 2>&1 | awk '{print $1 ":" $4}' | sort | tr '\n' ' ')"; echo "$((SECONDS - t)) s: $1" >&2; }
`

// doSteps lets the script run against the daemon that now owns the bus name.
func (p *product) doSteps(dir, side string, chosen []step) transcript {
	p.t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, scriptHead, password, fresh, cheap)
	for _, s := range chosen {
		fmt.Fprintf(&b, "run '%s' '%s'\n", strings.ReplaceAll(s.name, "'", `'\''`), strings.ReplaceAll(s.script, "'", `'\''`))
	}
	p.Put("/tmp/steps", []byte(b.String()), 0o644)
	// What a step shows can be read while the next one runs.
	file, err := os.Create(filepath.Join(dir, side))
	if err != nil {
		p.t.Fatal(err)
	}
	defer file.Close()
	var out bytes.Buffer
	r := p.Do(vmtest.Command{Argv: []string{"bash", "/tmp/steps"}, Stdout: io.MultiWriter(&out, file), Limit: 15 * time.Minute})
	if r.Code != 0 || r.Expired {
		p.t.Fatalf("%v\n%s", r, out.String())
	}
	shown := cases(out.String())
	for name, lines := range shown {
		shown[name] = nil
		for _, line := range lines {
			line = sortedMembers(line)
			for _, n := range normal {
				line = n.from.ReplaceAllString(line, n.to)
			}
			// XML says the same with its attributes in any order, and of an
			// element without content in two ways.
			if endTag.MatchString(line) {
				continue
			}
			if m := startTag.FindStringSubmatch(line); m != nil {
				attributes := attribute.FindAllString(m[2], -1)
				slices.Sort(attributes)
				line = m[1] + strings.Join(attributes, "") + ">"
			}
			shown[name] = append(shown[name], line)
		}
	}
	return shown
}

// sortedMembers is a line of JSON with its members in order, which says the
// same, and records in it too; any other line is as it was.
func sortedMembers(line string) string {
	before, text, after := "", line, ""
	if m := recordReply.FindStringSubmatch(line); m != nil {
		if json.Unmarshal([]byte(m[2]), &text) != nil {
			return line
		}
		before, after = m[1], m[3]
	}
	v, ok := decoded(text)
	if !ok {
		return line
	}
	sorted, err := json.Marshal(inner(v))
	if err != nil {
		return line
	}
	return before + string(sorted) + after
}

func decoded(text string) (v any, ok bool) {
	if !strings.HasPrefix(text, "{") && !strings.HasPrefix(text, "[") {
		return nil, false
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	err := d.Decode(&v)
	return v, err == nil && !d.More()
}

// inner reads the strings of a value that are JSON.
func inner(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = inner(e)
		}
	case []any:
		for i, e := range v {
			v[i] = inner(e)
		}
	case string:
		if r, ok := decoded(v); ok {
			return inner(r)
		}
	}
	return v
}

var (
	recordReply = regexp.MustCompile(`^(\(sb\) |s )(".*")( true| false|)$`)
	endTag      = regexp.MustCompile(`^ *</(method|signal|property|interface)>$`)
	startTag    = regexp.MustCompile(`^( *<[a-z]+)((?: [a-z]+="[^"]*")*) ?/?>$`)
	attribute   = regexp.MustCompile(` [a-z]+="[^"]*"`)
)

// normal takes out of what programs print what differs from run to run, and
// the one path that the specification gives each daemon for itself (bus.md 14).
var normal = func() (out []struct {
	from *regexp.Regexp
	to   string
}) {
	for _, n := range [][2]string{
		{`/usr/(local/)?(bin|lib/hearth)/(systemd-home-fallback-shell|homeshell)`, "FALLBACK-SHELL"},
		{`[A-Z][a-z]{2} \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC`, "TIME"},
		{`\b(\d+(y|month|w|d|h|min|s|ms|us) ?)+ago`, "AGO"},
		{`(USec\\?" ?: ?)\d+`, "${1}T"},
		{`\$(y|6)\$[^"\\]+`, "HASH"},
		{`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`, "UUID"},
		{`(data\\?" ?: ?\\?")[A-Za-z0-9+/=]{80,}`, "${1}SIGNATURE"},
		{`(Failed to parse JSON [a-z]+ record at \d+:\d+: )[A-Z].*`, "${1}UNRELATED"}, // Q13: whatever errno is
		{`MCowBQYDK2Vw[A-Za-z0-9+/=]+`, "KEY"},
		{`(rateLimitCount\\?" ?: ?)\d+`, "${1}N"},
		{`(Disk (Usage|Free|Ceiling)): .*`, "$1: SIZE"},
		{`(disk(Usage|Free|Ceiling)\\?" ?: ?)\d+`, "${1}SIZE"},
		{`([cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8}`, "RECOVERY-KEY"},
	} {
		out = append(out, struct {
			from *regexp.Regexp
			to   string
		}{regexp.MustCompile(n[0]), n[1]})
	}
	return out
}()

// stepSample is what every run does: who has a home is asked in a few ways,
// which differ from run to run; HEARTH_TEST_SEED repeats one.
func stepSample(t testing.TB) (chosen []step) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("HEARTH_TEST_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("HEARTH_TEST_SEED=%d", seed)
	var some []step
	for _, s := range steps {
		if s.alone {
			some = append(some, s)
		}
		if s.name == "create a directory" {
			chosen = append(chosen, s)
		}
	}
	g := rand.New(rand.NewPCG(seed, 0))
	for _, i := range g.Perm(len(some))[:4] {
		chosen = append(chosen, some[i])
	}
	return chosen
}

// wipe stops both daemons and deletes all that they know.
const wipe = `timeout 60 homectl deactivate-all || :; systemctl stop systemd-homed.service homed.service || :; rm -rf /var/lib/systemd/home/* /var/lib/systemd/home/.[a-z]* /var/cache/systemd/home/* /run/systemd/home /home/* /home/.[a-z]* /srv/*; systemctl reset-failed || :; `

// sameSteps does the steps first with our daemon and then, in the same boot,
// with systemd-homed, which owns the bus from then on.
func (p *product) sameSteps(chosen []step, allowed *testenv.Differences) {
	p.t.Helper()
	dir := p.t.ArtifactDir()
	p.MustSh(wipe + "systemctl enable homed.service; systemctl restart homed.service")
	p.ownsBus("/usr/local/lib/hearth/homed")
	ours := p.doSteps(dir, "ours", chosen)
	p.MustSh(wipe + "systemctl disable homed.service; systemctl daemon-reload; systemctl start systemd-homed.service")
	p.ownsBus("/usr/lib/systemd/systemd-homed")
	theirs := p.doSteps(dir, "theirs", chosen)
	var names []string
	for _, s := range chosen {
		names = append(names, s.name)
	}
	compare(p.t, names, theirs, ours, allowed, "")
}

func stepDifferences(t testing.TB) *testenv.Differences {
	return testenv.ReadDifferences(t, "testdata/TestSameScript/differences.txt")
}

// TestSameScript does all steps with the real programs, with our daemon and with
// systemd-homed: statuses, texts, records and the states of the homes are equal
// but for what the file lists. Every run does a sample, in TestQuirks.
func TestSameScript(t *testing.T) {
	t.Parallel()
	only := os.Getenv("HEARTH_TEST_STEPS")
	if only == "" {
		needLong(t)
	}
	vmtest.Need(t)
	var chosen []step
	for _, s := range steps {
		if regexp.MustCompile(only).MatchString(s.name) {
			chosen = append(chosen, s)
		}
	}
	p := install(t, vmtest.Options{Suite: vmtest.Forky})
	if v := p.SystemdVersion(); v != 262 {
		t.Skipf("systemd here is %d: texts are compared with 262 only", v)
	}
	p.MustSh("useradd -u 1500 plain; rm -rf /home/plain")
	p.foreignRecord("kim")
	allowed := stepDifferences(t)
	p.sameSteps(chosen, allowed)
	if only == "" {
		allowed.Unused(t)
		t.Logf("RESULT %d steps with both daemons, differences that no row allows: %v", len(steps), t.Failed())
	}
}

// foreignRecord leaves in the guest's /tmp a record that a key of another
// machine signed, and the key.
func (p *product) foreignRecord(name string) {
	t := p.t
	private, public, err := records.GenerateKey(crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := records.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	defer signer.Close()
	pw, err := secret.Copy([]byte(password))
	if err != nil {
		t.Fatal(err)
	}
	defer pw.Close()
	hash, err := records.HashPassword(pw, crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := uint64(time.Now().UnixMicro())
	r, err := records.NewBuilder(name).Set("disposition", "regular").Set("storage", "directory").Set("enforcePasswordPolicy", false).
		Set("lastChangeUSec", now).Set("lastPasswordChangeUSec", now).SetPrivileged("hashedPassword", []string{hash}).Record()
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(r)
	if err != nil {
		t.Fatal(err)
	}
	p.Put("/tmp/other.public", public, 0o644)
	p.Put("/tmp/"+name+".json", signed.Record().Compact(), 0o644)
}

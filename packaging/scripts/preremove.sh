#!/bin/sh
# Before emberd is removed, it and its microVMs are ended. An upgrade ends nothing.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;;
esac

# Offline, as in an image, this takes away the links of an enabled unit.
if command -v systemctl >/dev/null; then
	systemctl --no-reload disable emberd.socket emberd.service >/dev/null 2>&1 || true
	if [ -d /run/systemd/system ]; then
		systemctl stop emberd.socket emberd.service
	fi
fi

# MicroVMs outlive the daemon. Those of its data directory are in one cgroup,
# whose name is made from the directory of the jails.
data=$(emberd config explain data-dir 2>/dev/null | sed -n 's/^data-dir = "\(.*\)"$/\1/p')
jails=$(printf %s "${data:-/var/lib/emberd}/jail" | sha256sum | cut -c1-8)
group=/sys/fs/cgroup/emberd-$jails
if [ -w "$group/cgroup.kill" ]; then
	echo 1 >"$group/cgroup.kill"
	for _ in 1 2 3 4 5 6 7 8 9 10; do
		grep -q 'populated 0' "$group/cgroup.events" && break
		sleep 0.2
	done
	find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
fi

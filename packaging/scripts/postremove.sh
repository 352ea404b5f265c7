#!/bin/sh
# A removal keeps data and settings. A purge removes them, and nothing else.
set -e
case "$1" in
remove | purge | 0)
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload
	fi
	;;
esac
if [ "$1" = purge ]; then
	rm -rf --one-file-system /var/lib/emberd /run/emberd
	# Settings that dpkg does not know, such as a backup, are whoever's made them.
	rmdir --ignore-fail-on-non-empty /etc/emberd 2>/dev/null || true
fi

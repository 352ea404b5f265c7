#!/bin/sh
# After an installation nothing runs that did not before. After an upgrade an
# emberd that ran is started anew; its sandboxes live on.
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	systemctl try-restart emberd.service
fi

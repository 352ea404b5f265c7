# Shell functions that the scripts here share.

# need PROGRAM PACKAGE installs the Debian package that has the program, if the
# program is missing.
need() {
	command -v "$1" >/dev/null && return
	local sudo=
	[[ $EUID -eq 0 ]] || sudo=sudo
	echo "== installing $2"
	$sudo apt-get update -qq
	DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

# Shell functions that the scripts here share.

# need PROGRAM PACKAGE... installs the Debian packages that have the program, if
# the program is missing.
need() {
	command -v "$1" >/dev/null && return
	shift
	local sudo=
	[[ $EUID -eq 0 ]] || sudo=sudo
	echo "== installing $*"
	$sudo apt-get update -qq
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

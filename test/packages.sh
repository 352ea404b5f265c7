#!/usr/bin/env bash
# Builds the packages and takes the .deb through its life on a clean Debian: it is
# installed, upgraded, removed and purged, and leaves nothing behind.
# Usage: packages.sh NFPM_VERSION VERSION
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh
need mmdebstrap mmdebstrap
need rpm rpm

sudo=
[[ $EUID -eq 0 ]] || sudo=sudo
work=$(mktemp -d)
root=$work/root
trap '$sudo rm -rf --one-file-system "$work"' EXIT
fail() { echo "FAIL: $*" >&2; exit 1; }
say() { printf '== %s (%ds)\n' "$*" "$SECONDS"; }

say "building: an older version, and this one twice"
./packaging/build.sh "$1" bin v0.0.0-1-old "$work/old" >/dev/null
./packaging/build.sh "$1" bin "$2" "$work/new" >/dev/null
./packaging/build.sh "$1" bin "$2" "$work/again" >/dev/null
diff -r "$work/new" "$work/again" || fail "the same source made other packages"
old=$(ls "$work"/old/*.deb) deb=$(ls "$work"/new/*.deb) rpm=$(ls "$work"/new/*.rpm)

say "looking into them"
cat >"$work/wanted" <<'END'
/etc/emberd/emberd.toml
/usr/bin/emberctl
/usr/bin/emberd
/usr/lib/emberd/emberctl
/usr/lib/emberd/emberd
/usr/lib/emberd/emberd-init
/usr/lib/systemd/system/emberd.service
/usr/lib/systemd/system/emberd.socket
/usr/share/bash-completion/completions/emberctl
/usr/share/bash-completion/completions/emberd
/usr/share/doc/emberd/changelog.gz
/usr/share/doc/emberd/copyright
/usr/share/fish/vendor_completions.d/emberctl.fish
/usr/share/fish/vendor_completions.d/emberd.fish
/usr/share/man/man1/emberctl.1.gz
/usr/share/man/man8/emberd.8.gz
/usr/share/zsh/_emberctl
/usr/share/zsh/_emberd
END
same() { sed -E 's,zsh/(vendor-completions|site-functions),zsh,' | sort | diff "$work/wanted" - || fail "$1 has other files"; }
dpkg-deb --fsys-tarfile "$deb" | tar t | sed -n 's,^\.\(.*[^/]\)$,\1,p' | same "the .deb"
rpm -qp --qf '[%{FILEMODES:perms} %{FILENAMES}\n]' "$rpm" 2>/dev/null | sed -n 's/^[^d][^ ]* //p' | same "the .rpm"
[[ $(dpkg-deb -I "$deb" conffiles) == /etc/emberd/emberd.toml ]] || fail "conffiles of the .deb"
[[ $(rpm -qpc "$rpm" 2>/dev/null) == /etc/emberd/emberd.toml ]] || fail "configuration files of the .rpm"

. /etc/os-release
base=.cache/root-$VERSION_CODENAME.tar
if [[ ! -e $base ]]; then
	say "making a clean $VERSION_CODENAME (once)"
	mapfile -t sources < <(ls /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null)
	$sudo mmdebstrap --quiet --variant=minbase --include=systemd,bash-completion "$VERSION_CODENAME" "$base.partial.tar" "${sources[@]}"
	$sudo mv "$base.partial.tar" "$base"
fi
mkdir "$root"
$sudo tar xf "$base" -C "$root"

# inside COMMAND... runs it in the clean Debian.
inside() {
	$sudo unshare --mount --pid --fork --kill-child sh -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' \
		"$root" env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/ DEBIAN_FRONTEND=noninteractive "$@"
}
# tree lists every file there is, but those that dpkg keeps its own books in.
tree() {
	(cd "$root" && $sudo find . -xdev -regextype posix-extended \
		\( -regex '\./(proc|tmp|run/systemd)|\./var/lib/dpkg/(status|status-old|lock|lock-frontend|triggers/Lock)|\./var/log/dpkg.log' -prune \) \
		-o -type d -printf '%m %u:%g %p/\n' -o -printf '%m %u:%g %p %s %l\n' | sort -k3)
}
install() {
	$sudo cp "$1" "$root/tmp/emberd.deb"
	inside dpkg -i /tmp/emberd.deb >"$work/log" 2>&1 || { cat "$work/log"; fail "dpkg -i $1"; }
}
tree >"$work/before"

say "installing"
install "$old"
inside emberd --version
inside emberd config check /etc/emberd/emberd.toml
inside emberctl --help >/dev/null
inside bash -c '. /usr/share/bash-completion/bash_completion && _completion_loader emberctl; complete -p emberctl && _completion_loader emberd; complete -p emberd' >/dev/null ||
	fail "completions do not load"
for page in man8/emberd.8 man1/emberctl.1; do
	inside gzip -dc "/usr/share/man/$page.gz" | grep -q '^\.SH DESCRIPTION' || fail "the manual page $page"
done
[[ ! -e $root/etc/systemd/system/multi-user.target.wants/emberd.service ]] || fail "installing enabled the service"
inside systemd-analyze verify --man=no emberd.service emberd.socket 2>&1 | tee "$work/log"
[[ ! -s $work/log ]] || fail "systemd-analyze verify complains"
if inside emberd 2>"$work/log"; then fail "emberd started without KVM"; fi
cat "$work/log"
grep -q "emberctl machine start" "$work/log" || fail "the refusal does not say what to do"

say "upgrading, with settings of one's own"
echo 'max-memory = 4096' | $sudo tee -a "$root/etc/emberd/emberd.toml" >/dev/null
# As on a system that runs, whose systemd is told what to do.
$sudo mkdir -p "$root/run/systemd/system"
printf '#!/bin/sh\necho "$*" >>/tmp/systemctl\n' | $sudo tee "$root/usr/local/bin/systemctl" >/dev/null
$sudo chmod 755 "$root/usr/local/bin/systemctl"
install "$deb"
inside emberd config explain max-memory | grep -q 'max-memory = 4096' || fail "the upgrade lost settings"
told() { diff "$root/tmp/systemctl" - || fail "systemd was told something else"; $sudo rm "$root/tmp/systemctl"; }
told <<'END'
daemon-reload
try-restart emberd.service
END

say "removing"
inside dpkg -r emberd >/dev/null
told <<'END'
--no-reload disable emberd.socket emberd.service
stop emberd.socket emberd.service
daemon-reload
END
$sudo rm -r "$root/usr/local/bin/systemctl" "$root/run/systemd/system"
[[ -e $root/etc/emberd/emberd.toml ]] || fail "removing lost the settings"
[[ ! -e $root/usr/lib/emberd ]] || fail "removing left programs"

say "installing again, enabled, with data, and purging"
install "$deb"
inside systemctl enable emberd.service emberd.socket 2>/dev/null
$sudo mkdir -p "$root/var/lib/emberd/packs/python" "$root/run/emberd/sandboxes"
inside dpkg -P emberd >/dev/null
tree >"$work/after"
diff "$work/before" "$work/after" || fail "purging left something"
say "the packages are fine"

#!/usr/bin/env bash
# Makes the .deb and the .rpm from the programs in a directory. The same source
# makes the same bytes.
# Usage: build.sh NFPM_VERSION PROGRAMS VERSION OUT
set -euo pipefail
cd "$(dirname "$0")/.."
programs=$2 version=$3 out=$4

nfpm=.cache/nfpm-$1
if [[ ! -x $nfpm ]]; then
	echo "== building nfpm $1 (once, some minutes)"
	GOBIN="$PWD/.cache/gobin" go install "github.com/goreleaser/nfpm/v2/cmd/nfpm@$1"
	mv .cache/gobin/nfpm "$nfpm"
fi

# Packages have versions that sort. Before the first tag there is but a commit.
case $version in
v[0-9]*) PACKAGE_VERSION=$(sed 's/^v//; s/-/+/; s/-/./g' <<<"$version") ;;
[0-9]*.*) PACKAGE_VERSION=$version ;;
*) PACKAGE_VERSION=0.0.0+$(git rev-list --count HEAD).$(tr - . <<<"$version") ;;
esac
PACKAGE_ARCH=$(go env GOARCH)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
STAGE=$(mktemp -d)
trap 'rm -rf "$STAGE"' EXIT
export PACKAGE_VERSION PACKAGE_ARCH SOURCE_DATE_EPOCH STAGE

cp "$programs"/{emberd,emberctl,emberd-init} "$STAGE"
for page in emberd.8 emberctl.1; do
	# Without a variable that a default could be taken from.
	env -i "$STAGE/${page%.*}" man | gzip -9n >"$STAGE/$page.gz"
done
for program in emberd emberctl; do
	for shell in bash zsh fish; do
		env -i "$STAGE/$program" completion "$shell" >"$STAGE/$program.$shell"
	done
done
gzip -9nc CHANGELOG.md >"$STAGE/changelog.gz"

mkdir -p "$out"
for packager in deb rpm; do
	"$nfpm" package --config packaging/nfpm.yaml --packager "$packager" --target "$out/"
done

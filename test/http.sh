#!/usr/bin/env bash
# Runs the tests of the API against web pages in a browser, a fuzzer of its
# schema and slow clients. Usage: http.sh [TEST FLAGS]
set -euo pipefail
cd "$(dirname "$0")/.."
. test/lib.sh

schemathesis=4.32.5
need chromium chromium
venv=.cache/schemathesis-$schemathesis
if [[ ! -x $venv/bin/schemathesis ]]; then # which is installed last
	python3 -c 'import ensurepip, venv' 2>/dev/null || need ensurepip python3-venv
	echo "== installing schemathesis $schemathesis"
	rm -rf "$venv" # what an interrupted run left
	python3 -m venv "$venv"
	"$venv/bin/pip" install -q --disable-pip-version-check "schemathesis==$schemathesis"
fi
PATH="$PWD/$venv/bin:$PATH" go test -count=1 -timeout 30m -v ./test/http -http "$@"

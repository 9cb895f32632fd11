#!/bin/sh
# Fetches the cases of CEL's conformance suite, as npm has them, unless they are there: policy/tests/cel-spec.sh DIRECTORY
# writes DIRECTORY/conformance.js. The version and what it contains are fixed.
set -eu
version=0.6.1
sum=37e4b203f5ca5192db73a6095d129fb5e58a262a89309ba32e1840e7a80270e1
mkdir -p "$1"
exec 9>"$1/lock"
flock 9
[ "$(cat "$1/version" 2>/dev/null)" = "$version" ] && [ -f "$1/conformance.js" ] && exit 0
# npm knows its registry; the name of the file that it writes is in its last line.
packed=$(timeout 120 npm pack --silent --pack-destination "$1" "@bufbuild/cel-spec@$version" | tail -n 1)
mv "$1/$packed" "$1/cel-spec.tgz"
echo "$sum  $1/cel-spec.tgz" | sha256sum --check --quiet
tar -xzf "$1/cel-spec.tgz" -C "$1" --strip-components=4 package/dist/esm/testdata/conformance.js
echo "$version" >"$1/version"

#!/bin/sh
# Fetches the cases of CEL's conformance suite, as npm has them, unless they are there: policy/tests/cel-spec.sh DIRECTORY
# writes DIRECTORY/conformance.js. The version and what it contains are fixed.
set -eu
version=0.6.1
sum=37e4b203f5ca5192db73a6095d129fb5e58a262a89309ba32e1840e7a80270e1
url=https://registry.npmjs.org/@bufbuild/cel-spec/-/cel-spec-$version.tgz
mkdir -p "$1"
exec 9>"$1/lock"
flock 9
[ "$(cat "$1/version" 2>/dev/null)" = "$version" ] && [ -f "$1/conformance.js" ] && exit 0
curl --fail --silent --show-error --location --max-time 120 --output "$1/cel-spec.tgz" "$url"
echo "$sum  $1/cel-spec.tgz" | sha256sum --check --quiet
tar -xzf "$1/cel-spec.tgz" -C "$1" --strip-components=4 package/dist/esm/testdata/conformance.js
echo "$version" >"$1/version"

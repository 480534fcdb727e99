# Sourced by the other scripts: installing Debian packages where that is allowed.
# shellcheck shell=sh

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

may_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; }
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

# Quiet when it works; everything that was said when it does not.
apt_get() {
    apt_log=$(mktemp)
    apt_status=0
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 "$@" \
        >"$apt_log" 2>&1 </dev/null || apt_status=$?
    [ "$apt_status" = 0 ] || cat "$apt_log" >&2
    rm -f "$apt_log"
    return "$apt_status"
}

# Sourced by the other scripts: install Debian packages, where that is allowed.
# shellcheck shell=sh

# Whether packages may be installed: only as root on Debian, such as in a container or CI. Other users are not asked
# for a password; for them the caller prints the command.
may_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1
}

# Print the command that installs packages on Debian.
install_line() {
    echo "sudo apt-get install --no-install-recommends $*"
}

apt_updated=

# Without recommended packages: Debian's prometheus recommends another service.
apt_install() {
    if [ -z "$apt_updated" ]; then
        # After a failed update, the existing package lists may suffice.
        apt_get update || true
        apt_updated=yes
    fi
    apt_get install --yes --no-install-recommends "$@"
}

# Silent if it succeeds; prints the whole log if it fails.
# DPkg::Path is the PATH of package scripts. The programs with which they start services are replaced by ones that do
# nothing.
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

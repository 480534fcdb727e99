#!/bin/sh
# tools/servers.sh ensure redis|rabbitmq|prometheus|systemd|wget ...
# See that the servers' programs, and those that check on services, are here; install Debian's packages where that is allowed.
# Nothing is started: tests and demo start servers of their own. Exit 1 if one cannot be had.
set -eu
cd "$(dirname "$0")/.."
. tools/debian.sh

policy=/usr/sbin/policy-rc.d
saved=$policy.jobmetrics-saved

# Debian starts a service as soon as its package is installed, unless policy-rc.d says 101. One that runs
# already is not touched.
hold_services() {
    # Left over from a run that was killed.
    release_services
    trap release_services EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    if as_root test -e "$policy"; then
        as_root mv "$policy" "$saved" || return 1
    fi
    printf '#!/bin/sh\n# jobmetrics: no service starts now\nexit 101\n' | as_root tee "$policy" >/dev/null &&
        as_root chmod 755 "$policy"
}

release_services() {
    if as_root grep -qs '^# jobmetrics: no service starts now' "$policy"; then
        as_root rm -f "$policy"
    fi
    if as_root test -e "$saved"; then
        as_root mv "$saved" "$policy"
    fi
}

# Nor at the next boot: nobody asked for a service.
disable_services() {
    for service in "$@"; do
        if [ -e "/etc/init.d/$service" ]; then
            as_root update-rc.d "$service" disable >/dev/null 2>&1 || true
        elif command -v systemctl >/dev/null 2>&1; then
            as_root systemctl disable "$service.service" "$service.socket" >/dev/null 2>&1 || true
        fi
    done
}

found() {
    PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1
}

ensure() {
    case $1 in
    redis) program=redis-server package=redis-server services=redis-server ;;
    rabbitmq) program=rabbitmq-server package=rabbitmq-server services=rabbitmq-server ;;
    prometheus) program=prometheus package=prometheus services=prometheus ;;
    systemd) program=systemd-analyze package=systemd services= ;;
    wget) program=wget package=wget services= ;;
    *)
        echo "tools/servers.sh: unknown server $1; known: redis, rabbitmq, prometheus, systemd, wget" >&2
        exit 2
        ;;
    esac
    if found "$program"; then
        return 0
    fi
    if ! may_install; then
        echo "$program is not installed; get it with: apt-get install $package (or your system's way)" >&2
        return 1
    fi
    # RabbitMQ brings epmd, another service, unless Erlang was here before.
    if [ "$1" = rabbitmq ] && ! found epmd; then
        services="$services epmd"
    fi
    echo "installing $package"
    installed=
    if hold_services && apt_install "$package"; then
        installed=yes
    fi
    release_services
    if [ -z "$installed" ] || ! found "$program"; then
        echo "could not install $package; get it with: apt-get install $package" >&2
        return 1
    fi
    # Unquoted: a list of words.
    disable_services $services
}

if [ "${1:-}" != ensure ] || [ $# -lt 2 ]; then
    echo "usage: tools/servers.sh ensure redis|rabbitmq|prometheus|systemd|wget ..." >&2
    exit 2
fi
shift

status=0
for server in "$@"; do
    ensure "$server" || status=1
done
exit "$status"

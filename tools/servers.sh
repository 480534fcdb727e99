#!/bin/sh
# tools/servers.sh ensure redis|rabbitmq|prometheus|systemd|wget ...
# Check that the programs of the servers, and those that check services, are installed. As root on Debian, install what
# is missing. Otherwise print the line that installs it, and change nothing.
# No service is started: tests and demo start servers of their own. Exit 1 if a program is missing at the end.
set -eu
cd "$(dirname "$0")/.."
. tools/debian.sh

# Services of new packages do not start at the next boot either.
disable_services() {
    for service in "$@"; do
        if [ -e "/etc/init.d/$service" ]; then
            update-rc.d "$service" disable >/dev/null 2>&1 || true
        elif command -v systemctl >/dev/null 2>&1; then
            systemctl disable "$service.service" "$service.socket" >/dev/null 2>&1 || true
        fi
    done
}

found() {
    PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1
}

missing=

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
    if may_install; then
        # RabbitMQ brings epmd, another service, unless Erlang was here before.
        if [ "$1" = rabbitmq ] && ! found epmd; then
            services="$services epmd"
        fi
        echo "installing $package"
        if apt_install "$package" && found "$program"; then
            # Unquoted: a list of words.
            disable_services $services
            return 0
        fi
    fi
    missing="$missing $package"
}

if [ "${1:-}" != ensure ] || [ $# -lt 2 ]; then
    echo "usage: tools/servers.sh ensure redis|rabbitmq|prometheus|systemd|wget ..." >&2
    exit 2
fi
shift

for server in "$@"; do
    ensure "$server"
done
if [ -n "$missing" ]; then
    # Unquoted: a list of words.
    echo "not installed:$missing. On Debian or Ubuntu: $(install_line $missing)" >&2
    exit 1
fi

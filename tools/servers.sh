#!/bin/sh
# tools/servers.sh ensure redis|rabbitmq|prometheus|alertmanager|systemd|wget ...
# Check that the servers and tools for tests and demo are installed. As root on Debian, install the missing ones.
# Otherwise print the command that installs them, and change nothing.
# No service is started, because tests and demo start separate servers. Exit 1 if a program is still missing.
set -eu
cd "$(dirname "$0")/.."
. tools/debian.sh

# Keep the services of new packages from starting at the next boot.
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
    alertmanager) program=prometheus-alertmanager package=prometheus-alertmanager services=prometheus-alertmanager ;;
    systemd) program=systemd-analyze package=systemd services= ;;
    wget) program=wget package=wget services= ;;
    *)
        echo "tools/servers.sh: unknown server $1; known: redis, rabbitmq, prometheus, alertmanager, systemd, wget" >&2
        exit 2
        ;;
    esac
    if found "$program"; then
        return 0
    fi
    if may_install; then
        # RabbitMQ's package also installs epmd, another service, unless Erlang is installed already.
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
    echo "usage: tools/servers.sh ensure redis|rabbitmq|prometheus|alertmanager|systemd|wget ..." >&2
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

#!/bin/sh
# First in the PATH of package scripts when tools/servers.sh installs packages, so that no service starts.
exit 0

#!/bin/sh
# Make .venv with the package and all its extras. Do nothing if it is up to date.
set -eu
cd "$(dirname "$0")/.."
. tools/debian.sh

die() {
    echo "jobmetrics: $*" >&2
    exit 1
}

python=${PYTHON:-python3}

# Two runs in one checkout take turns. An existing file is locked, so no lock file is left behind.
if command -v flock >/dev/null 2>&1; then
    exec 9<pyproject.toml
    flock 9
fi

# The base interpreter: PYTHON may be the python of .venv, which cannot replace .venv.
base=$("$python" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))' 2>/dev/null) ||
    die "cannot run $python; install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3"
"$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    die "$base is older than Python 3.10; name a newer one: make PYTHON=/path/to/python3"

# .venv is out of date if the requirements, the interpreter or the checkout's path have changed.
key=$({ cat pyproject.toml constraints.txt tools/venv.sh; pwd; "$base" -c 'import sys; print(sys.version)'; } | cksum)
if [ -x .venv/bin/python ] && [ "$(cat .venv/stamp 2>/dev/null)" = "$key" ] && .venv/bin/python -c '' 2>/dev/null; then
    exit 0
fi

if ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian ships these in a separate package, named after the Python version.
    package=$("$base" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    may_install || die "$base cannot make virtual environments; install it with: $(install_line "$package")"
    echo "installing $package"
    apt_install "$package" || die "could not install $package"
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
        die "$base cannot make virtual environments, even with $package installed; name another: make PYTHON=..."
fi

echo "setting up .venv (once; a minute or two)"
"$base" -m venv --clear .venv
# -qq prints errors only. Dependency groups need pip 25.1.
.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt 'pip>=25.1'
.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt --group dev -e '.[all]'
echo "$key" >.venv/stamp

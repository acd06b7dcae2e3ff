#!/bin/bash
# setup.sh [VENV] - makes a virtual environment for tests/parity/run.py and tests/fixtures/make.py, or says why it cannot
# (one line on stdout) and exits 77. The versions are those that the fixtures were written with.
set -u
venv=${1:-build/parity-venv}
version=${TRANSFORMERS:-5.17} # TRANSFORMERS=4.57: the same models as the older code writes them
want="import torch, transformers, safetensors; assert torch.__version__.startswith('2.13.')
assert transformers.__version__.startswith('$version')"

skip() {
    echo "$*"
    exit 77
}
if "$venv/bin/python" -c "$want" 2>/dev/null; then exit 0; fi

command -v python3 >/dev/null || skip "there is no python3"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || skip "$(python3 --version) is older than 3.10"
rm -rf "$venv"
python3 -m venv "$venv" >&2 || skip "python3 -m venv failed (on Debian: apt-get install python3-venv)"
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2; }
# The CPU build where the configured indexes have it: it is a tenth of the size.
pip 'torch==2.13.0+cpu' || pip 'torch==2.13.0' || skip "pip could not install torch 2.13.0"
pip "transformers==$version.*" 'safetensors>=0.6' numpy || skip "pip could not install transformers $version"
pip peft || echo "without PEFT: the suite leaves out peft-lora" >&2
"$venv/bin/python" -c "$want" >&2 || skip "the installed PyTorch does not start"

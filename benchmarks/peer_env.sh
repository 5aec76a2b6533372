# To be sourced by trl_env.sh and verl_env.sh: makes the environment $venv with the CPU build of the
# torch in configs/constraints.txt, and leaves the array `pip`, which installs into it.
pinned() { sed -n "s/^$1==//p" configs/constraints*.txt; }

[ -x "$venv/bin/python" ] || "${BANDPO_PYTHON:-python3}" -m venv "$venv"
pip=("$venv/bin/python" -m pip install -qq --disable-pip-version-check)
torch="torch==$(pinned torch)+cpu"
"${pip[@]}" "$torch" 2>/dev/null || "${pip[@]}" "$torch" --index-url https://download.pytorch.org/whl/cpu

#!/usr/bin/env bash
# From nothing to a model that Hugging Face transformers loads, in a few minutes on two CPU cores.
# It shows each command as it runs; they are the ordinary ones. Interrupted at any point and started again, it goes on.
#
#   launch/quickstart.sh [key=value ...]      for example: launch/quickstart.sh train.steps=1000 run_dir=runs/longer
set -euo pipefail
cd "$(dirname "$0")/.."

config=configs/quickstart.yaml
bold=$'\e[1m' plain=$'\e[0m'
[[ -t 1 ]] || bold='' plain=''

# If this script is killed, so is the command it runs; training commits a last checkpoint first.
guard=()
command -v setpriv >/dev/null && guard=(setpriv --pdeathsig TERM --)

show() {
  printf '\n%s$%s%s\n' "$bold" "$(printf ' %q' "$@")" "$plain"
  "${guard[@]}" "$@"
}

launch/setup.sh hf
export PATH="$PWD/.venv/bin:$PATH"
run=$(bigtrain config show "$config" "$@" --json | python -c 'import json, sys; print(json.load(sys.stdin)["run_dir"])')
began=$SECONDS

echo 'bigtrain quickstart: raw text -> tokenizer and shards -> training -> evaluation -> a Hugging Face model'

# 1. Text to tokens: the source and documentation of the Python standard library.
show bigtrain data build "$config" "$@"

# 2. Train on two processes (or all GPUs).
show launch/local.sh "$config" "$@"

# 3. What has it learned?
show bigtrain eval "$run" --yardsticks
show bigtrain generate "$run" $'def read_lines(path):\n    """' --max-new-tokens 80

# 4. Out to Hugging Face, reloaded there and compared.
show bigtrain export "$run" "$run/hf" --to hf
show python launch/try_export.py "$run/hf"

# 5. The result: the held-out perplexity beside its baselines, the curve, and where each file is.
show bigtrain report "$run"

cat <<EOF

Made in $((SECONDS - began)) seconds:
  $run/hf            the model: AutoModelForCausalLM.from_pretrained("$run/hf")
  $run/checkpoints   committed checkpoints (bigtrain checkpoint verify $run)
  $run/report.html   the curves; $run/loss.svg is the figure
  $run/metrics.jsonl a line for each step; $run/events.jsonl the events; $run/wandb is for \`wandb sync\`

Try next:
  bigtrain generate $run "import json" --temperature 0.5
  launch/quickstart.sh train.steps=1500 run_dir=runs/longer
  bigtrain config explain engine
(after: source .venv/bin/activate)
EOF

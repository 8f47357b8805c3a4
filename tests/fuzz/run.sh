#!/bin/bash
# run.sh MINUTES [TARGET]: has libFuzzer make bytes for each target, or for those whose tests have this in
# their names, for so long each. It begins with the cases in `corpus` and with what it found before, in
# `target/fuzz`. Bytes at which a target fails are written there, too.
set -euo pipefail
cd "$(dirname "$0")/../.."

LIBFUZZER=$(find /usr/lib/llvm-* -name "libclang_rt.fuzzer_no_main-$(uname -m).a" | sort --version-sort | tail -n 1)
if [ -z "$LIBFUZZER" ]; then
  echo "libFuzzer is missing: install libclang-rt-dev" >&2
  exit 1
fi
export LIBFUZZER RUSTC_WORKSPACE_WRAPPER=$PWD/tests/fuzz/instrument.sh
programs=$(cargo test --workspace --lib --no-run --features vnetpool-fuzz/libfuzzer --message-format json-render-diagnostics \
  | jq -r 'select(.executable and (.target.name | IN("vnetpool_plugin", "vnetpool_node_agent", "vnetpool_operator"))).executable')

log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0 count=0
for program in $programs; do
  for target in $("$program" --list | sed -n 's/^\(.*fuzz::.*\): test$/\1/p' | grep -F -- "${2:-}"); do
    count=$((count + 1))
    printf '%s: ' "$target"
    if FUZZ="-max_total_time=$((60 * $1)) -timeout=10 -print_final_stats=1" \
      "$program" "$target" --exact --nocapture --test-threads 1 > "$log" 2>&1; then
      awk '/ cov: / { last = $0 } /number_of_executed_units/ { runs = $2 }
        END { match(last, /cov: [0-9]+/); print runs " inputs, " substr(last, RSTART + 5, RLENGTH - 5) " branches" }' "$log"
    else
      failed=$((failed + 1))
      echo failed
      tail -n 30 "$log"
    fi
  done
done
echo "$count targets, $failed failed"
[ "$count" -gt 0 ] && [ "$failed" = 0 ]

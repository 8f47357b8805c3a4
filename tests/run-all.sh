#!/bin/bash
# Runs every check and every test, whatever fails before, and ends with the total. A check counts as one.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

passed=0 failed=0 skipped=0 failures=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# stage TITLE COMMAND...: runs it and adds up what it reports: Rust's "test result:" lines, Go's "--- PASS:" lines, else itself.
stage() {
  local title=$1 status p f s begun=$SECONDS
  shift
  printf '\n=== %s\n' "$title"
  "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  read -r p f s < <(awk '
    /^test result: / { p += $4; f += $6; s += $8 }
    /^--- PASS: / { p++ } /^--- FAIL: / { f++ } /^--- SKIP: / { s++ }
    END { print p + 0, f + 0, s + 0 }' "$log")
  # What ended badly without a word of a failed test (it didn't compile, it crashed) is one failure.
  if [ "$status" != 0 ] && [ "$f" = 0 ]; then f=1; fi
  if [ "$((p + f + s))" = 0 ]; then p=1; fi
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  [ "$f" = 0 ] || failures+=("$title")
  printf -- '--- %s: %d s\n' "$title" $((SECONDS - begun))
  return "$status"
}

stage 'Format' make check-format
stage 'The plugin stands alone' make check-plugin-alone
stage 'Clippy' make check-clippy
# Without these nothing further can run.
if stage 'Kubernetes, helm and the cluster tool' make cluster-build && stage 'Programs and images' make images; then
  stage 'Go vet' make check-go
  stage 'Go tests' make test-go
  stage 'Chart' make check-chart
  stage 'Rust tests: units, conformance, kernel, admission, conduct, story' make test-rust
fi

echo
for title in "${failures[@]}"; do echo "failed: $title"; done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]

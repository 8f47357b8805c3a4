#!/bin/bash
# run-all.sh [check|test|nightly]: runs the stages of that target, whatever fails before, and ends with the total.
#
#   check    what a change is to pass before anybody looks at it: format, lints, units, the model, conduct
#   test     all that gates a landing
#   nightly  the same, and what is too long for that
#
# Of the stages some are checks, which count as one, and some are tests: those count what they report, and to report
# nothing is a failure.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

passed=0 failed=0 skipped=0 failures=() times=()
folder=$(mktemp -d)
log=$folder/log
beside=''
finish() {
  if [ -n "$beside" ]; then kill -TERM -- "-$beside" 2>/dev/null; fi
  rm -rf "$folder"
}
trap finish EXIT
trap 'exit 130' INT TERM

# run TITLE COMMAND...: runs a stage; leaves what it printed in the log and its exit code in `status`.
run() {
  local title=$1 begun=$SECONDS
  shift
  printf '\n=== %s\n' "$title"
  "$@" 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  printf -- '--- %s: %d s\n' "$title" $((SECONDS - begun))
  times+=("$(printf '%5d s  %s' $((SECONDS - begun)) "$title")")
}

# check TITLE COMMAND...: one check, which its exit code decides.
check() {
  run "$@"
  if [ "$status" = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)) failures+=("$1"); fi
  return "$status"
}

# tests TITLE COMMAND...: a stage of tests.
tests() {
  run "$@"
  local title=$1 word rest p=0 f=0 s=0 wrong=()
  while read -r word rest; do
    case $word in
      count) read -r p f s <<< "$rest" ;;
      skip) may_skip || wrong+=("$rest was skipped, and all it needs is here") ; echo "skipped: $rest" ;;
      empty) wrong+=("$rest ran no test") ;;
      time) times+=("$(printf '%5d s    %s' "${rest%% *}" "${rest#* }")") ;;
    esac
  done < <(awk -f tests/tally.awk "$log")
  if [ "$((p + f + s))" = 0 ]; then wrong+=("no test was reported"); fi
  # What ended badly without a word of a failed test: it didn't compile, or crashed.
  if [ "$status" != 0 ] && [ "$f" = 0 ]; then wrong+=("exit code $status"); fi
  passed=$((passed + p)) failed=$((failed + f + ${#wrong[@]})) skipped=$((skipped + s))
  if [ "$f" != 0 ]; then failures+=("$title: $f tests"); fi
  for one in "${wrong[@]}"; do failures+=("$title: $one"); done
}

# begin_beside FUNCTION: begins stages that run beside the next ones, at the lowest priority, in a process group of
# their own.
begin_beside() {
  echo "$1 begins beside the next stages; its output follows theirs"
  set -m
  (
    renice -n 19 -p "$BASHPID" >/dev/null
    trap - EXIT
    passed=0 failed=0 skipped=0 failures=() times=() log=$folder/log.beside
    "$1"
    declare -p passed failed skipped failures times | sed 's/^declare /declare -g /' > "$folder/sum.beside"
  ) > "$folder/output.beside" 2>&1 &
  beside=$!
  set +m
}

# end_beside: waits for those stages, prints what they printed and adds what they counted.
end_beside() {
  wait "$beside"
  beside=''
  cat "$folder/output.beside"
  local p=$passed f=$failed s=$skipped failures_so_far=("${failures[@]}") times_so_far=("${times[@]}")
  if ! . "$folder/sum.beside"; then failed=1 failures=("what ran beside the clusters gave no sum") times=(); fi
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  failures=("${failures_so_far[@]}" "${failures[@]}") times=("${times_so_far[@]}" "${times[@]}")
}

# The one thing that the project doesn't bring along: Azure's own documents, which lie beside it where it is developed.
may_skip() { [ ! -d ../shared/azure-spec/specification ]; }

quick() {
  check 'Format' make check-format
  check 'The plugin stands alone' make check-plugin-alone
  check 'Nothing is compiled twice' make check-one-build
}

# What the processor alone is busy with. Clusters mostly wait, and none of this minds waiting for them.
steady() {
  check 'Go vet' make check-go
  tests 'Go tests' make test-go
  check 'Chart' make check-chart
  tests 'Rust: units, model' make test-units
  check 'Clippy' make check-clippy
}

target=${1:-test}
case $target in
  check)
    quick
    check 'Clippy' make check-clippy
    tests 'Rust: units, model' make test-units
    check 'Kubernetes for conduct' make cluster-build PARTS='kube helm cluster' &&
      tests 'Rust: conduct' make test-conduct
    ;;
  test | nightly)
    quick
    # Without these nothing further can run.
    if check 'Kubernetes, helm and the cluster tool' make cluster-build && check 'Programs and images' make images &&
      check 'Rust tests are built' make build-tests; then
      tests 'Rust: fabric, kernel, admission, conduct' make test-others
      begin_beside steady
      tests 'Rust: clusters' make test-clusters
      end_beside
    else
      steady
    fi
    if [ "$target" = nightly ]; then
      check 'Book' make book
      tests 'Nightly' make test-nightly
    fi
    ;;
  *)
    echo "run-all.sh: there is no target $target: check, test or nightly" >&2
    exit 2
    ;;
esac

printf '\nWhere the time went:\n'
printf '%s\n' "${times[@]}"
echo
for one in "${failures[@]}"; do echo "failed: $one"; done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]

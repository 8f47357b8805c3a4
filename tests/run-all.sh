#!/bin/bash
# run-all.sh [check|test|nightly]: runs the stages of that target, whatever fails before, and ends with
# the total.
#
#   check    what a change is to pass before a review: format, lints, units, the model, most of conduct
#   test     all that gates a landing
#   nightly  the same, and what is too long for that
#
# Some stages are checks, which count as one, and some are tests: those count what they report, and a test
# stage without a report is a failure.
set -uo pipefail
# The target alone decides how much of conduct runs.
unset CONDUCT
cd "$(dirname "$0")/.." || exit 1

passed=0 failed=0 skipped=0 failures=() whys=() times=()
folder=$(mktemp -d)
log=$folder/log
declare -A beside=()
finish() {
  for lane in "${!beside[@]}"; do kill -TERM -- "-${beside[$lane]}" 2>/dev/null; done
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
  if [ "$status" = 0 ]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1)) failures+=("$1") whys+=("---- $1 ----" "$(tail -n 30 "$log")")
  fi
  return "$status"
}

# tests TITLE COMMAND...: a stage of tests.
tests() {
  run "$@"
  local title=$1 word rest p=0 f=0 s=0 names=() wrong=()
  while read -r word rest; do
    case $word in
      count) read -r p f s <<< "$rest" ;;
      skip) may_skip || wrong+=("$rest was skipped, and all it needs is here") ; echo "skipped: $rest" ;;
      empty) wrong+=("$rest ran no test") ;;
      time) times+=("$(printf '%5d s    %s' "${rest%% *}" "${rest#* }")") ;;
      why) whys+=("$rest") ;;
      failed) names+=("$rest") ;;
    esac
  done < <(awk -f tests/tally.awk "$log")
  if [ "$((p + f + s))" = 0 ]; then wrong+=("no test was reported"); fi
  # A stage that ended badly without a failed test: it didn't compile, or crashed.
  if [ "$status" != 0 ] && [ "$f" = 0 ]; then
    wrong+=("exit code $status") whys+=("---- $title ----" "$(tail -n 30 "$log")")
  fi
  passed=$((passed + p)) failed=$((failed + f + ${#wrong[@]})) skipped=$((skipped + s))
  # A name that tests of two programs have is there once.
  if [ "$f" -gt "${#names[@]}" ]; then names+=("$f tests in all"); fi
  for one in "${names[@]}" "${wrong[@]}"; do failures+=("$title: $one"); done
}

# begin_beside FUNCTION NICENESS: begins stages that run beside the next ones, in a process group of
# their own.
begin_beside() {
  local lane=$1
  echo "$lane begins beside the next stages; its output follows theirs"
  set -m
  (
    renice -n "$2" -p "$BASHPID" >/dev/null
    passed=0 failed=0 skipped=0 failures=() whys=() times=() log=$folder/log.$lane
    "$lane"
    declare -p passed failed skipped failures whys times | sed 's/^declare /declare -g /' > "$folder/sum.$lane"
  ) > "$folder/output.$lane" 2>&1 &
  beside[$lane]=$!
  set +m
}

# end_beside FUNCTION: waits for those stages, prints what they printed and adds what they counted.
end_beside() {
  local lane=$1
  wait "${beside[$lane]}"
  unset "beside[$lane]"
  cat "$folder/output.$lane"
  local p=$passed f=$failed s=$skipped failures_so_far=("${failures[@]}")
  local whys_so_far=("${whys[@]}") times_so_far=("${times[@]}")
  if ! . "$folder/sum.$lane"; then
    passed=0 failed=1 skipped=0 failures=("$lane gave no sum") whys=() times=()
  fi
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  failures=("${failures_so_far[@]}" "${failures[@]}") whys=("${whys_so_far[@]}" "${whys[@]}")
  times=("${times_so_far[@]}" "${times[@]}")
}

# The one thing that the project doesn't bring along: Azure's own documents, which lie beside it where it
# is developed.
may_skip() { [ ! -d ../shared/azure-spec/specification ]; }

quick() {
  check 'Format' make check-format
  check 'The plugin stands alone' make check-plugin-alone
  check 'Nothing is compiled twice' make check-one-build
}

# Stages that need the processor alone. Clusters and operators mostly wait, and before a landing these stages
# can wait for them.
steady() {
  check 'Go vet' make check-go
  tests 'Go tests' make test-go
  check 'Chart' make check-chart
  tests 'Rust: units, model' make test-units
  check 'Clippy' make check-clippy
  check 'Documentation of the code' make check-docs
}

# Half of what needs a cluster with nodes; the other half runs beside it.
clusters() { tests 'Rust: modes, story' make test-clusters RUN='modes story'; }

target=${1:-test}
case $target in
  check)
    quick
    if check 'Kubernetes for conduct' make cluster-build PARTS='kube helm cluster kstatus' &&
      check 'Programs' make build && check 'Rust tests are built' make build-tests; then
      # Not at the lowest priority: who waits for a check waits for both.
      begin_beside steady 0
      tests 'Rust: conduct' make test-conduct-short
      end_beside steady
    else
      steady
    fi
    ;;
  test | nightly)
    quick
    # Without these no further stage can run.
    if check 'Kubernetes, helm and the cluster tool' make cluster-build && check 'Programs and images' make images &&
      check 'Rust tests are built' make build-tests; then
      begin_beside steady 19
      tests 'Rust: fabric, kernel, admission, conduct' make test-others
      begin_beside clusters 0
      tests 'Rust: services, paths, standalone, new-vnet, soak' make test-clusters RUN='services paths standalone new-vnet soak'
      end_beside clusters
      end_beside steady
    else
      steady
    fi
    if [ "$target" = nightly ]; then
      check 'Book' make book
      check 'Dependencies' make check-dependencies
      check 'Release' make release
      tests 'Nightly' make test-nightly
      tests 'Linux 6.1' make older-linux
      tests 'The oldest Kubernetes' make older-kubernetes
      tests 'arm64' make arm64
      check 'Dockerfile' make dockerfile
      tests 'The real az' make azure-cli
      tests 'Mutations' make mutations
      check 'Bytes' make fuzz
      tests "Kubernetes' conformance" env NIGHTLY=yes make conformance
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
# Again, where a reader of the last lines finds it: of hours of output often no more is kept.
if [ "${#whys[@]}" != 0 ]; then printf '%s\n' "${whys[@]}" ''; fi
for one in "${failures[@]}"; do echo "failed: $one"; done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]

# Reads what a stage printed and sums it up, one fact a line:
#
#   count PASSED FAILED SKIPPED   over all of it: Rust's "test result:" lines and Go's "--- PASS:" lines
#   skip NAME                     a test that was skipped
#   empty BINARY                  a test program that ran not one test, though tests are all it is for
#   time SECONDS BINARY           how long a test program took, by its own clock
#   why LINE                      of what a failed test of Rust's printed: at most 30 lines each
#   failed NAME                   a test that has failed, once
#
# A test that fails may print what another run of tests printed. Whoever shows that indents it (`alone.rs`);
# and a result counts only for as many tests as were begun, and within reports only if one of them failed.

function has_failed(test) {
  if (!(test in named)) print "failed " test
  named[test] = 1
}

function end_of_binary() {
  begun = ""
  if (binary == "") return
  # A library's examples may have no tests, and cargo's --lib also runs the model's library, which is empty;
  # every other binary is there for its tests.
  if (ran == 0 && binary != "unittests lib.rs" && binary !~ /^Doc-tests /) print "empty " binary
  if (ran > 0) printf "time %d %s\n", seconds + 0.5, binary (package == "" ? "" : " of " package)
  binary = ""; ran = 0; seconds = 0
}

/^running [0-9]+ tests?$/ {
  if (begun == "") { begun = $2; reports = 0; names = 0 }
}
# Its report begins with a line of its name, and the reports end with the list of all names.
/^---- .* ----$/ { lines = 30; reports = 1; listing = 0 }
/^(failures:|test result: )/ { lines = 0 }
lines > 0 { print "why " $0; lines-- }
/^failures:$/ { listing = 1; names = 0; next }
listing && /^    [^ ]/ { list[++names] = substr($0, 5); next }
listing && NF { listing = 0 }

/^     Running / {
  end_of_binary()
  binary = $0; sub(/^ +Running /, "", binary); sub(/ \(.*$/, "", binary)
  package = $0; sub(/^.*\//, "", package); sub(/-[0-9a-f]+\)$/, "", package)
  next
}
/^   Doc-tests / { end_of_binary(); binary = "Doc-tests " $2; package = ""; next }
/^test result: / {
  if (begun != $4 + $6 + $8 + $10 || (reports && !$6)) next
  passed += $4; failed += $6; skipped += $8; ran += $4 + $6 + $8; begun = ""
  for (i = 1; i <= names; i++) has_failed(list[i])
  names = 0
  for (i = 1; i < NF; i++) if ($i == "in") seconds += $(i + 1)
  next
}
/^test .* \.\.\. ignored/ { print "skip " $2; next }
/^ *--- SKIP: / { print "skip " $3 }
/^--- PASS: / { passed++ }
/^--- FAIL: / { failed++; has_failed($3) }
/^--- SKIP: / { skipped++ }
/^ok .*\[no tests to run\]$/ { print "empty " $2 }
END { end_of_binary(); printf "count %d %d %d\n", passed, failed, skipped }

# Reads what a stage printed and sums it up, one fact a line:
#
#   count PASSED FAILED SKIPPED   over all of it: Rust's "test result:" lines and Go's "--- PASS:" lines
#   skip NAME                     a test that was skipped
#   empty BINARY                  a test program that ran not one test, though tests are all it is for
#   time SECONDS BINARY           how long a test program took, by its own clock
#   why LINE                      of what a failed test of Rust's printed: at most 30 lines each

function end_of_binary() {
  if (binary == "") return
  # A library's examples may have no tests, and cargo's --lib also runs the model's library, which is empty;
  # every other binary is there for its tests.
  if (ran == 0 && binary != "unittests lib.rs" && binary !~ /^Doc-tests /) print "empty " binary
  if (ran > 0) printf "time %d %s\n", seconds + 0.5, binary (package == "" ? "" : " of " package)
  binary = ""; ran = 0; seconds = 0
}

# Its report begins with a line of its name, and the reports end with the list of all names.
/^---- .* ----$/ { lines = 30 }
/^(failures:|test result: )/ { lines = 0 }
lines > 0 { print "why " $0; lines-- }

/^ +Running / {
  end_of_binary()
  binary = $0; sub(/^ +Running /, "", binary); sub(/ \(.*$/, "", binary)
  package = $0; sub(/^.*\//, "", package); sub(/-[0-9a-f]+\)$/, "", package)
  next
}
/^ +Doc-tests / { end_of_binary(); binary = "Doc-tests " $2; package = ""; next }
/^test result: / {
  passed += $4; failed += $6; skipped += $8; ran += $4 + $6 + $8
  for (i = 1; i < NF; i++) if ($i == "in") seconds += $(i + 1)
  next
}
/^test .* \.\.\. ignored/ { print "skip " $2; next }
/^ *--- SKIP: / { print "skip " $3 }
/^--- PASS: / { passed++ }
/^--- FAIL: / { failed++ }
/^--- SKIP: / { skipped++ }
/^ok .*\[no tests to run\]$/ { print "empty " $2 }
END { end_of_binary(); printf "count %d %d %d\n", passed, failed, skipped }

#!/bin/sh
# instrument.sh RUSTC ARGUMENTS...: for cargo, the compiler of the workspace's crates. Unit tests with targets
# count their branches, and are linked with LIBFUZZER. All flags are those of a stable compiler.
case " $* " in
  *" --crate-name vnetpool_plugin "*" --test "* | *" --crate-name vnetpool_node_agent "*" --test "* | \
  *" --crate-name vnetpool_operator "*" --test "*) ;;
  *) exec "$@" ;;
esac
coverage=-sanitizer-coverage
exec "$@" -C passes=sancov-module -C codegen-units=1 \
  -C llvm-args=$coverage-level=4 -C llvm-args=$coverage-inline-8bit-counters \
  -C llvm-args=$coverage-pc-table -C llvm-args=$coverage-trace-compares \
  -C link-arg=-Wl,-Bstatic -C link-arg=-Wl,--start-group -C link-arg="$LIBFUZZER" -C link-arg=-lstdc++ -C link-arg=-lm \
  -C link-arg=-lgcc -C link-arg=-lgcc_eh -C link-arg=-lc -C link-arg=-Wl,--end-group

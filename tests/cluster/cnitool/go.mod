// The reference runtime of the CNI specification, as a test dependency: see ../README.md.
module vnetpool.io/tests/cluster/cnitool

go 1.26.0

tool github.com/containernetworking/cni/cnitool

require github.com/containernetworking/cni v1.3.0 // indirect

//! Has the plugin linked for a fixed place in memory. A program that can be anywhere first corrects thousands
//! of addresses in itself, at each start, and each page with one of them costs a page fault.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for argument in ["-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bin=vnetpool={argument}");
    }
}

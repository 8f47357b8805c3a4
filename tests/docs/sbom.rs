//! `tests/sbom.sh`: which packages of Debian's a release names as parts of its images.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use vnetpool_tests::project::root;

fn sbom(folder: &Path) -> Output {
    let mut script = Command::new(root().join("tests/sbom.sh"));
    script.arg(folder).args(["vnetpool-node-agent", "1.2.3"]).output().unwrap()
}

#[test]
fn the_packages_of_each_file_of_an_image_are_named_and_a_file_of_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str| {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    };
    // As the linker names a library, whose package has it below /usr.
    let libraries = ["/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu"];
    let libraries = libraries.iter().find(|one| Path::new(one).is_dir()).unwrap();
    let library = ["libnftables.so.1", "libmnl.so.0"].map(|name| format!("{libraries}/{name}"));
    for path in ["/usr/sbin/nft", "/vnetpool-node-agent", &library[0], &library[1]] {
        write(path.trim_start_matches('/'));
    }
    let output = sbom(folder.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["bomFormat"], "CycloneDX");
    assert_eq!(document["metadata"]["component"]["version"], "1.2.3");
    let components = document["components"].as_array().unwrap();
    let names: Vec<_> = components.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["libmnl0", "libnftables1", "nftables"]);
    for one in components {
        let name = one["name"].as_str().unwrap();
        let purl = one["purl"].as_str().unwrap();
        assert!(purl.starts_with(&format!("pkg:deb/debian/{name}@")) && !purl.contains('+'), "{purl}");
    }

    write("usr/sbin/nobodys");
    let output = sbom(folder.path());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && errors.contains("/usr/sbin/nobodys is of no Debian package"),
        "{errors}"
    );
}

//! The tests of the kernel that plugin and agent have, on Linux 6.1, Debian 12's. Unlike a newer one it
//! renames no link that is up, for example.
//!
//! An emulated machine boots it. The guest sees this machine's files, so that programs, libraries and tests
//! are where they were built, and nothing that it writes stays (`init.sh`). The processor is emulated, too,
//! which any machine can do, and makes the tests some ten times slower. KVM isn't asked for: a virtual
//! machine may have one that boots no such kernel. Needs root.
//!
//! `make older-linux` gets emulator and kernel (`setup.sh`), and runs this.

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};
use vnetpool_tests::guest;
use vnetpool_tests::project::root;
use vnetpool_tests::wait::patience;

/// A guest may take so long, on a machine that does nothing else.
const LIMIT: Duration = Duration::from_secs(600);

/// A machine with one processor, a serial line, this machine's files, and no second start.
const EMULATOR: &str = "qemu-system-x86_64 -accel tcg -m 2G -nographic -nodefaults -serial stdio -no-reboot \
     -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";

/// A package's test program `kernel`, and the tests of it that are left out.
struct Suite {
    folder: &'static str,
    left_out: &'static [&'static str],
}

const PLUGIN: Suite = Suite {
    folder: "node-agent/plugin",
    left_out: &[
        // A thousand plugins, each stopped at every system call, would take half an hour.
        "crashes::",
        // A slow kernel has system calls made again, so that their number says nothing.
        "thrift::",
        // Here links change faster than they are listed.
        "hazards::a_dump_is_whole_while_links_come_and_go",
        // Its layers can't lie on the guest's.
        "containerd::",
    ],
};
const AGENT: Suite = Suite { folder: "node-agent", left_out: &[] };

impl Suite {
    fn passes(&self) -> Result<()> {
        let mut command = vec![self.program()?.display().to_string(), "--color=never".to_owned()];
        command.extend(self.left_out.iter().map(|test| format!("--skip={test}")));
        let listed = Command::new(&command[0]).args(&command[1..]).arg("--list").output()?;
        let listed = String::from_utf8(listed.stdout)?;
        let expected = listed.lines().filter(|line| line.ends_with(": test")).count();
        let printed = self.boot(&command.join(" "))?;
        guest::verdict(&printed, "6.1.", expected)
    }

    /// Cargo's word on where it was built.
    fn program(&self) -> Result<PathBuf> {
        let mut cargo = Command::new("cargo");
        cargo.args(["test", "--workspace", "--test", "kernel", "--no-run", "--message-format=json"]);
        // Those of the cargo that runs this: with them it would compile some crates again.
        let of_a_package = |name: &OsStr| {
            let name = name.as_encoded_bytes();
            name.starts_with(b"CARGO_PKG_") || name.starts_with(b"CARGO_MANIFEST_")
        };
        env::vars_os().filter(|(name, _)| of_a_package(name)).for_each(|(name, _)| {
            cargo.env_remove(name);
        });
        let output = cargo.current_dir(root()).stderr(Stdio::inherit()).output().context("cargo")?;
        let manifest = json!(root().join(self.folder).join("Cargo.toml"));
        let messages = String::from_utf8(output.stdout)?;
        let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_its = |message: &Value| {
            message["manifest_path"] == manifest && message["target"]["kind"] == json!(["test"])
        };
        let program =
            messages.filter(is_its).find_map(|message| Some(message["executable"].as_str()?.into()));
        program.with_context(|| format!("{} has no test program kernel", self.folder))
    }

    /// Boots the kernel, has the guest run this, and returns what it printed. The emulator ends with the
    /// guest, and after the limit also if nobody waits for it any more.
    fn boot(&self, command: &str) -> Result<Vec<String>> {
        let folder = root().join("target/older-linux");
        let linux = folder.join("linux");
        let releases =
            fs::read_dir(linux.join("lib/modules")).context("run `make older-linux`, which gets a kernel")?;
        let release = releases.flatten().next().context("no kernel")?.file_name();
        let kernel = linux.join("boot").join(format!("vmlinuz-{}", release.to_string_lossy()));
        let environment = format!(
            r#"console=ttyS0 quiet panic=-1 FOLDER="{}" MODULES="{}" COMMAND="{command}""#,
            root().join(self.folder).display(),
            linux.join("lib/modules").display(),
        );
        let mut emulator = Command::new("timeout");
        emulator.args(["--foreground", "--kill-after=5"]).arg(patience(LIMIT).as_secs().to_string());
        emulator.args(EMULATOR.split(' ')).arg("-kernel").arg(kernel);
        emulator.arg("-initrd").arg(folder.join("initramfs")).arg("-append").arg(environment);
        emulator.stdin(Stdio::null()).stdout(Stdio::piped());
        let begun = Instant::now();
        let mut emulator = emulator.spawn().context("timeout")?;
        let mut printed = vec![];
        for line in BufReader::new(emulator.stdout.take().context("no output")?).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
            println!("guest, {:.0} s: {line}", begun.elapsed().as_secs_f64());
            printed.push(line);
        }
        let status = emulator.wait()?;
        ensure!(status.success(), "the emulator: {status} (124: it took too long)");
        Ok(printed)
    }
}

fn main() -> ExitCode {
    let trials = vec![
        trial("the_plugins_tests_of_the_kernel_pass_on_linux_6_1", PLUGIN),
        trial("the_agents_tests_of_the_kernel_pass_on_linux_6_1", AGENT),
    ];
    // One guest at a time.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(name: &str, suite: Suite) -> Trial {
    Trial::test(name, move || suite.passes().map_err(|error| format!("{error:#}").into()))
}

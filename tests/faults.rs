//! What a run does when the machine does not play along: kill -9, Ctrl-C, a full disk, inputs and
//! outputs that are no files, inputs that change under it. There is never a broken output.

#![cfg(unix)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{BINARY, Made, Random, expect, names};
use twn_pack::{Container, Dtype, PARTIAL_SUFFIX, verify};

/// A checkpoint of `mib` MiB: a row of 1 MiB over and over, so that it is quickly made.
fn input(directory: &Path, mib: usize) -> PathBuf {
    let row = Made::gaussian("row", Dtype::F32, &[1 << 18], 1).data;
    let big = Made { name: "w".to_owned(), dtype: Dtype::F32, shape: vec![mib * 64, 4096], data: row.repeat(mib) };
    common::checkpoint(directory, "in.safetensors", &[big])
}

fn pack(input: &Path, output: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg(input).arg("-o").arg(output).args(["-j", "2"]).args(more);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Runs a shell script that gets the binary as $0 and two paths as $1 and $2.
fn shell(script: &str, input: &Path, output: &Path) -> Output {
    Command::new("sh").args(["-c", script, BINARY]).arg(input).arg(output).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_root(directory: &Path) -> bool {
    // A directory without permissions keeps everybody else out.
    let closed = directory.join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o000)).unwrap();
    let open = std::fs::write(closed.join("file"), "").is_ok();
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::remove_dir_all(closed).unwrap();
    open
}

/// Waits for at most a minute: a run that hangs is a failure, not a test that never ends.
fn wait(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("hangs");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn killed_at_any_moment_the_output_is_the_old_or_the_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (input(directory.path(), 24), directory.path().join("out.twn"));
    expect(0, &[input.as_os_str(), "-o".as_ref(), output.as_ref(), "--method".as_ref(), "bwn".as_ref()]);
    let old = std::fs::read(&output).unwrap();
    let other = directory.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let start = Instant::now();
    assert!(pack(&input, &other.join("new.twn"), &[]).status().unwrap().success());
    let mut run = start.elapsed();
    let new = std::fs::read(other.join("new.twn")).unwrap();
    assert_ne!(old, new);
    let mut random = Random(7);
    let (mut killed, mut left, mut published) = (0, 0, 0);
    let start = Instant::now();
    for _ in 0..200 {
        if start.elapsed() > Duration::from_secs(35) {
            break;
        }
        let mut child = pack(&input, &output, &["--force"]).spawn().unwrap();
        std::thread::sleep(run.mul_f64(1.1 * random.unit()));
        child.kill().unwrap();
        let met = child.wait().unwrap().signal() == Some(9);
        killed += u32::from(met);
        // How long a run takes changes with what else the machine does.
        run = run.mul_f64(if met { 1.05 } else { 0.9 });
        let found = std::fs::read(&output).unwrap();
        assert!(found == old || found == new, "a broken output");
        if found == new {
            published += 1;
            std::fs::write(&output, &old).unwrap();
        }
        for name in names(directory.path()) {
            if !["in.safetensors", "out.twn", "other"].contains(&name.as_str()) {
                assert!(name.starts_with(".out.twn.") && name.ends_with(PARTIAL_SUFFIX), "{name}");
                left += 1;
                // What was cut off is no container, whatever of it reached the disk.
                let path = directory.path().join(name);
                let bytes = std::fs::read(&path).unwrap();
                assert!(Container::from_bytes(&path, bytes.clone()).is_err() || bytes == new);
                std::fs::remove_file(path).unwrap();
            }
        }
    }
    println!("{killed} killed, {left} left a partial file, {published} were through");
    assert!(killed > 20 && left > 0, "{killed} killed, {left} left a partial file: the test tests nothing");
}

/// Waits until the run has its temporary file, so that a signal meets it at work.
fn wait_for_partial(directory: &Path, child: &mut Child) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) && child.try_wait().unwrap().is_none() {
        if names(directory).iter().any(|name| name.ends_with(PARTIAL_SUFFIX)) {
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    false
}

#[test]
fn interrupted_it_says_so_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (input(directory.path(), 64), directory.path().join("out.twn"));
    for signal in ["INT", "TERM"] {
        let mut interrupted = 0;
        for _ in 0..5 {
            let mut child = pack(&input, &output, &["--force"]).spawn().unwrap();
            if wait_for_partial(directory.path(), &mut child) {
                let kill = format!("kill -{signal} {} 2>&1", child.id());
                Command::new("sh").args(["-c", &kill]).output().unwrap();
            }
            let result = wait(child);
            match result.status.code() {
                Some(130) => {
                    assert!(text(&result).contains("interrupted"), "{}", text(&result));
                    assert_eq!(names(directory.path()), ["in.safetensors"], "{signal}");
                    interrupted += 1;
                }
                // It was through before the signal came.
                Some(0) => std::fs::remove_file(&output).unwrap(),
                other => panic!("{signal}: {other:?} {}", text(&result)),
            }
        }
        assert!(interrupted > 0, "{signal} came too late every time");
    }
}

#[test]
fn a_full_disk_is_reported_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (input(directory.path(), 8), directory.path().join("out.twn"));
    // A limit on the length of files; its signal is ignored, so writes fail as on a full disk.
    let result = shell("ulimit -f 64; exec \"$0\" \"$1\" -o \"$2\"", &input, &output);
    assert_eq!(result.status.code(), Some(4), "{}", text(&result));
    assert!(text(&result).contains("out.twn: cannot write"), "{}", text(&result));
    assert_eq!(names(directory.path()), ["in.safetensors"]);

    // What lies beside an export goes with it.
    let layer = Made::gaussian("a.weight", twn_pack::Dtype::F32, &[512, 512], 1);
    let layer = common::checkpoint(directory.path(), "layer.safetensors", &[layer]);
    let packed = pack(&layer, &output, &["-g", "tensor"]).output().unwrap();
    assert!(packed.status.success(), "{}", text(&packed));
    // Not beside the model's own config.json, which is an input.
    let (beside, config) = (directory.path().join("exported"), directory.path().join("config.json"));
    std::fs::create_dir(&beside).unwrap();
    std::fs::write(&config, "{}").unwrap();
    let export =
        "ulimit -f 64; exec \"$0\" export \"$1\" --to bitnet --into \"$(dirname \"$1\")/config.json\" -o \"$2\" -f";
    let result = shell(export, &output, &beside.join("model.safetensors"));
    assert_eq!(result.status.code(), Some(4), "{}", text(&result));
    assert!(std::fs::read(&config).unwrap() == b"{}" && names(&beside).is_empty());

    let disk = directory.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&disk).output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        println!("skipped: no permission to mount a small file system");
        return;
    }
    let result = wait(pack(&input, &disk.join("out.twn"), &[]).spawn().unwrap());
    let left = names(&disk);
    assert!(Command::new("umount").arg(&disk).status().unwrap().success());
    assert_eq!(result.status.code(), Some(4), "{}", text(&result));
    assert!(text(&result).contains("out.twn") && text(&result).contains("No space"), "{}", text(&result));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn inputs_that_are_no_checkpoints_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let output = at("out.twn");
    let refused = |code, input: &Path, says: &str| {
        let (_, stderr) = expect(code, &[input.as_os_str(), "-o".as_ref(), output.as_os_str()]);
        assert!(stderr.contains(says) && stderr.contains(&*input.to_string_lossy()), "{stderr}");
        assert!(!output.exists());
    };
    refused(4, &at("missing.safetensors"), "cannot open");
    std::fs::create_dir(at("empty")).unwrap();
    refused(3, &at("empty"), "no .safetensors file");
    std::fs::create_dir(at("named.safetensors")).unwrap();
    refused(3, &at("named.safetensors"), "no .safetensors file");
    std::fs::write(at("text.safetensors"), "version https://git-lfs.github.com/spec/v1").unwrap();
    refused(3, &at("text.safetensors"), "safetensors");
    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    refused(4, &at("pipe"), "not a regular file");
    refused(4, Path::new("/dev/null"), "not a regular file");
    let closed = input(directory.path(), 1);
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o000)).unwrap();
    if is_root(directory.path()) {
        println!("skipped: root may read everything");
    } else {
        refused(4, &closed, "ermission");
    }
}

/// As the README says; a rename could not do anything else.
#[test]
fn a_link_is_replaced_and_not_what_it_leads_to() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let input = input(directory.path(), 1);
    std::fs::write(at("old.twn"), "old").unwrap();
    std::os::unix::fs::symlink(at("old.twn"), at("link.twn")).unwrap();
    let result = wait(pack(&input, &at("link.twn"), &["--force"]).spawn().unwrap());
    assert_eq!(result.status.code(), Some(0), "{}", text(&result));
    assert!(std::fs::symlink_metadata(at("link.twn")).unwrap().is_file());
    assert_eq!(std::fs::read(at("old.twn")).unwrap(), b"old");
}

#[test]
fn outputs_that_cannot_be_are_refused_before_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let input = input(directory.path(), 1);
    let before = std::fs::read(&input).unwrap();
    let refused = |code, output: &Path, more: &[&str], says: &str| {
        let result = wait(pack(&input, output, more).spawn().unwrap());
        assert_eq!(result.status.code(), Some(code), "{}", text(&result));
        assert!(text(&result).contains(says), "{}", text(&result));
    };
    refused(4, &at("no/such/out.twn"), &[], "out.twn");
    std::fs::create_dir(at("dir")).unwrap();
    refused(4, &at("dir"), &["--force"], "not a regular file");
    refused(4, Path::new("/dev/null"), &["--force"], "not a regular file");
    refused(4, Path::new("/dev/stdout"), &["--force"], "outputs are no streams");
    refused(2, Path::new("/"), &[], "needs a file name");
    std::fs::write(at("old.twn"), "old").unwrap();
    refused(2, &at("old.twn"), &[], "--force");
    assert_eq!(std::fs::read(at("old.twn")).unwrap(), b"old");
    std::os::unix::fs::symlink(&input, at("link.twn")).unwrap();
    for own in [input.clone(), at("link.twn"), at("dir/../in.safetensors")] {
        refused(2, &own, &["--force"], "is the input");
    }
    assert_eq!(std::fs::read(&input).unwrap(), before);
    if is_root(directory.path()) {
        println!("skipped: root may write everywhere");
    } else {
        std::fs::set_permissions(at("dir"), PermissionsExt::from_mode(0o500)).unwrap();
        refused(4, &at("dir/out.twn"), &[], "ermission");
    }
    assert_eq!(names(directory.path()), ["dir", "in.safetensors", "link.twn", "old.twn"]);
}

#[test]
fn a_directory_that_vanishes_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let input = input(directory.path(), 64);
    let target = directory.path().join("target");
    std::fs::create_dir(&target).unwrap();
    let mut child = pack(&input, &target.join("out.twn"), &[]).spawn().unwrap();
    let started = wait_for_partial(&target, &mut child);
    std::fs::remove_dir_all(&target).unwrap();
    let result = wait(child);
    assert!(!started || matches!(result.status.code(), Some(0 | 4)), "{:?} {}", result.status, text(&result));
    assert!(result.status.success() || text(&result).contains("out.twn"), "{}", text(&result));
    assert_eq!(names(directory.path()), ["in.safetensors"]);
}

#[test]
fn an_input_that_changes_during_the_run_gives_no_broken_output() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out.twn");
    let (mut noticed, mut random) = ([0, 0], Random(8));
    for round in 0..64 {
        if round >= 16 && noticed.iter().all(|&n| n > 0) {
            break;
        }
        let input = input(directory.path(), 48);
        let length = std::fs::metadata(&input).unwrap().len();
        let mut child = pack(&input, &output, &["--force"]).spawn().unwrap();
        if wait_for_partial(directory.path(), &mut child) {
            // Early and late, for machines of any speed.
            std::thread::sleep(Duration::from_micros(random.below(30_000 >> (round / 2 % 4 * 2))));
        }
        let file = std::fs::OpenOptions::new().write(true).open(&input).unwrap();
        if round % 2 == 0 {
            file.set_len(random.below(length)).unwrap();
        } else {
            std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], length - 5000).unwrap();
        }
        let result = wait(child);
        match result.status.code() {
            Some(0) => {
                let container = Container::open(&output).unwrap();
                assert!(verify::verify(&container, None).unwrap().is_good());
                std::fs::remove_file(&output).unwrap();
            }
            Some(3 | 4) => {
                assert!(text(&result).contains("in.safetensors") && !output.exists(), "{}", text(&result));
                noticed[round % 2] += 1;
            }
            other => panic!("{other:?} {:?}: {}", result.status.signal(), text(&result)),
        }
        // After SIGBUS nobody is left to remove the temporary file.
        for name in names(directory.path()).iter().filter(|name| *name != "in.safetensors") {
            assert!(name.ends_with(PARTIAL_SUFFIX) && round % 2 == 0, "{name}");
            std::fs::remove_file(directory.path().join(name)).unwrap();
        }
    }
    assert!(noticed[0] > 0 && noticed[1] > 0, "noticed {noticed:?}: the test tests nothing");
}

#[test]
fn outputs_have_the_permissions_that_the_umask_gives() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (input(directory.path(), 1), directory.path().join("out.twn"));
    for (umask, mode) in [("027", 0o640), ("022", 0o644), ("000", 0o666), ("077", 0o600)] {
        let script = format!("umask {umask}; exec \"$0\" \"$1\" -o \"$2\" --force");
        assert!(shell(&script, &input, &output).status.success());
        assert_eq!(std::fs::metadata(&output).unwrap().permissions().mode() & 0o777, mode, "umask {umask}");
        let back = directory.path().join("back.safetensors");
        let script = format!("umask {umask}; exec \"$0\" unpack \"$1\" -o \"$2\" --force");
        assert!(shell(&script, &output, &back).status.success());
        assert_eq!(std::fs::metadata(&back).unwrap().permissions().mode() & 0o777, mode, "umask {umask}");
    }
}

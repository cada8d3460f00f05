//! What the program writes: a file is replaced when the new one is complete, and a file that is read is never
//! replaced; and errors of writing to standard output.
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::program::{chunkwise, digits, fine, finish, golden, refused, scratch_file, under};
use serde_json::Value;

const SMALL: [&str; 5] = ["bench", "--rounds", "1", "--shape", "1,2,20,8,8"];

/// An empty folder for a test.
fn folder(name: &str) -> PathBuf {
    let folder = scratch_file(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A copy of the built-in model in a folder.
fn model(folder: &Path) -> PathBuf {
    let model = folder.join("model.safetensors");
    fs::copy(digits(), &model).unwrap();
    model
}

fn words<'a>(args: impl IntoIterator<Item = &'a (impl AsRef<OsStr> + ?Sized + 'a)>) -> Vec<&'a OsStr> {
    args.into_iter().map(AsRef::as_ref).collect()
}

#[test]
fn an_output_that_is_read() {
    let folder = folder("an_output_that_is_read");
    let model = model(&folder);
    let file = |name: &str| folder.join(name);
    for name in ["input", "weights"] {
        fs::copy(&model, file(name)).unwrap();
    }
    fs::write(file("config"), "{}").unwrap();
    fs::create_dir(file("inner")).unwrap();
    for name in ["input", "weights", "config", "model.safetensors"] {
        let before = fs::read(file(name)).unwrap();
        let (link, hard) = (file("link"), file("hard"));
        for other in [&link, &hard] {
            let _ = fs::remove_file(other);
        }
        symlink(file(name), &link).unwrap();
        fs::hard_link(file(name), &hard).unwrap();
        for output in [file(name), folder.join("inner/..").join(name), link, hard] {
            let input = file("input");
            let weights = file("weights");
            let config = file("config");
            let args: [&Path; 10] = [
                "run".as_ref(),
                "--model".as_ref(),
                &model,
                "--input".as_ref(),
                &input,
                "--weights".as_ref(),
                &weights,
                "--config".as_ref(),
                &config,
                "--output".as_ref(),
            ];
            let run = chunkwise(args.into_iter().chain([&*output]));
            refused(&run, &[output.to_str().unwrap(), "destroy", name]);
            assert!(fs::read(file(name)).unwrap() == before, "{name} has changed");
        }
    }
    // Without --input, the input is also in the model's file.
    refused(
        &chunkwise(words([Path::new("run"), "--model".as_ref(), &model, "--output".as_ref(), &model])),
        &["destroy"],
    );
    assert_eq!(names(&folder), ["config", "hard", "inner", "input", "link", "model.safetensors", "weights"]);
}

#[test]
fn reports_that_are_read_or_written_twice() {
    let folder = folder("reports_that_are_read");
    let old = folder.join("old.json");
    let bench = |more: &[&OsStr]| chunkwise(words(&SMALL).into_iter().chain(more.iter().copied()));
    fine(&bench(&words(["--format".as_ref(), "json".as_ref(), "--output".as_ref(), old.as_os_str()])));
    let before = fs::read(&old).unwrap();
    for flag in ["--output", "--plot"] {
        let args = ["--compare".as_ref(), old.as_os_str(), flag.as_ref(), old.as_os_str()];
        refused(&bench(&args), &["old.json", "destroy"]);
    }
    assert!(fs::read(&old).unwrap() == before);
    let new = folder.join("new");
    let (link, same) = (folder.join("link"), folder.join("./new"));
    symlink("new", &link).unwrap();
    for other in [&new, &link, &same] {
        let args = ["--output".as_ref(), new.as_os_str(), "--plot".as_ref(), other.as_os_str()];
        refused(&bench(&args), &["new", "destroy"]);
    }
    assert_eq!(names(&folder), ["link", "old.json"]);
}

/// A full disk, which is imitated by a limit on the size of files: an older file stays unchanged, and no
/// other file is left in its folder.
#[test]
fn no_room() {
    let folder = folder("no_room");
    let (model, old) = (model(&folder), folder.join("old"));
    fs::write(&old, "good").unwrap();
    let run = [OsStr::new("run"), "--model".as_ref(), model.as_os_str()];
    let bench = words(&SMALL);
    for (begin, flag) in [(&run[..], "--output"), (&bench, "--output"), (&bench, "--plot")] {
        for target in [old.clone(), folder.join("new")] {
            let args = [begin, &[flag.as_ref(), target.as_os_str()]].concat();
            let run = finish(&mut under("trap '' XFSZ; ulimit -f 1", &args));
            assert_eq!(run.code, 2, "{}{}", run.out, run.err);
            assert!(run.err.contains(target.to_str().unwrap()), "{}", run.err);
            assert!(
                run.out.contains("prefill") || flag == "--output",
                "the measurement was not printed: {}",
                run.out
            );
            assert_eq!(fs::read(&old).unwrap(), b"good");
            assert_eq!(names(&folder), ["model.safetensors", "old"]);
        }
    }
}

/// A replaced file keeps its permissions, and a new file has the usual ones. A link stays a link, and may
/// lead to a file that does not exist yet.
#[test]
fn what_a_replaced_file_keeps() {
    let folder = folder("what_a_replaced_file_keeps");
    let (model, output) = (model(&folder), folder.join("output"));
    let run = |output: &Path| {
        let args =
            ["run".as_ref(), "--model".as_ref(), model.as_os_str(), "--output".as_ref(), output.as_os_str()];
        fine(&finish(&mut under("umask 027", args)));
    };
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    run(&output);
    assert_eq!(format!("{:o}", mode(&output)), "640");
    fs::write(&output, "old").unwrap();
    fs::set_permissions(&output, Permissions::from_mode(0o604)).unwrap();
    let link = folder.join("link");
    symlink("output", &link).unwrap();
    let before = fs::metadata(&output).unwrap();
    run(&link);
    let after = fs::metadata(&output).unwrap();
    assert_eq!(format!("{:o}", mode(&output)), "604");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(after.len() > 1000 && after.ino() != before.ino(), "the file was not replaced");
    let (far, near) = (folder.join("far"), folder.join("near"));
    symlink("near", &far).unwrap();
    symlink("new", &near).unwrap();
    run(&far);
    assert_eq!(fs::metadata(folder.join("new")).unwrap().len(), after.len());
    assert_eq!(names(&folder), ["far", "link", "model.safetensors", "near", "new", "output"]);
}

/// Pipes, devices and the file to which standard output was redirected are written to, and not replaced.
#[test]
fn what_is_no_file() {
    let folder = folder("what_is_no_file");
    let json = ["--format", "json", "--output"];
    let bench = |output: &str, script: &str| {
        let args = words(&SMALL).into_iter().chain(words(&json)).chain([output.as_ref()]);
        finish(&mut under(script, args.collect::<Vec<_>>()))
    };
    let report = |text: &str| {
        let end = text.rfind('}').unwrap_or_else(|| panic!("{text}"));
        serde_json::from_str::<Value>(&text[text.find('{').unwrap()..=end]).expect("a report")
    };
    // A pipe, and a file that already has content.
    let run = bench("/dev/stdout", "");
    fine(&run);
    report(&run.out);
    let file = folder.join("file");
    fs::write(&file, "first\n").unwrap();
    fine(&bench("/dev/stdout", &format!("exec >>'{}'", file.display())));
    let text = fs::read_to_string(&file).unwrap();
    report(&text);
    assert!(text.starts_with("first\n") && text.contains("none pinned"), "{text}");
    fine(&bench("/dev/null", ""));
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    // A file that no longer has a name.
    if cfg!(target_os = "linux") {
        fine(&bench("/dev/fd/3", &format!("exec 3>'{0}'; rm '{0}'", file.display())));
        assert!(names(&folder).is_empty());
    } else {
        fs::remove_file(&file).unwrap();
    }
    let pipe = folder.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = {
        let pipe = pipe.clone();
        std::thread::spawn(move || fs::read_to_string(pipe).unwrap())
    };
    fine(&bench(pipe.to_str().unwrap(), ""));
    report(&reader.join().unwrap());
    assert_eq!(names(&folder), ["pipe"]);
}

/// A target that cannot be written is refused before anything is measured.
#[test]
fn a_place_that_can_not_be_written() {
    let folder = folder("a_place_that_can_not_be_written");
    let nowhere = folder.join("none/file");
    for target in [&nowhere, &folder] {
        for flag in ["--output", "--plot"] {
            let args =
                ["bench".as_ref(), "--time".as_ref(), "60s".as_ref(), flag.as_ref(), target.as_os_str()];
            let begin = std::time::Instant::now();
            refused(&chunkwise(args), &[target.to_str().unwrap()]);
            assert!(begin.elapsed().as_secs() < 30, "it was measured first");
        }
    }
    assert!(names(&folder).is_empty());
}

#[test]
fn names_that_are_not_utf_8() {
    let folder = folder("names_that_are_not_utf_8");
    let [output, plot] = [&b"\xff.json"[..], b"\xfe.svg"].map(|name| folder.join(OsStr::from_bytes(name)));
    let args =
        ["--format".as_ref(), "json".as_ref(), "--output".as_ref(), output.as_os_str(), "--plot".as_ref()];
    fine(&chunkwise(words(&SMALL).into_iter().chain(args).chain([plot.as_os_str()])));
    let report: Value = serde_json::from_slice(&fs::read(&output).unwrap()).unwrap();
    let command = report["command"].as_array().unwrap();
    assert!(command.iter().any(|word| word.as_str().unwrap().ends_with("\u{fffd}.json")), "{command:?}");
    assert!(fs::read_to_string(&plot).unwrap().contains("</svg>"));
    // Where an option takes text, such bytes are a mistake like any other.
    for args in [["run", "--num-heads"], ["bench", "--shape"]] {
        let args = words(&args).into_iter().chain([OsStr::from_bytes(b"\xff")]);
        refused(&chunkwise(args), &["UTF-8"]);
    }
}

/// A full device is an error, whatever is written to it.
#[cfg(target_os = "linux")]
#[test]
fn full_standard_output() {
    let file = golden("k_elu_s1");
    let check = ["check", file.to_str().unwrap()];
    for args in [
        &["--help"][..],
        &["help"],
        &["--version"],
        &["run", "--help"],
        &["bench", "-h"],
        &["info"],
        &["run"],
        &check,
        &SMALL,
    ] {
        let run = finish(&mut under("exec >/dev/full", words(args)));
        refused(&run, &["standard output", "No space"]);
    }
}

//! Whom the program's hub lets in, by ids on its command line and in files that change while it runs.

mod common;

use std::path::{Path, PathBuf};

use common::process::{Ended, Hub, Program};
use tempfile::TempDir;

/// Spokes with keys of their own, and the files that a hub is given.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    /// Puts a file in the place of another, at once.
    fn replace(&self, name: &str, text: &str) {
        let new = self.path("new");
        std::fs::write(&new, text).expect("it can be written");
        std::fs::rename(&new, self.path(name)).expect("it can be replaced");
    }

    /// Makes a key, and says whose it is.
    async fn make_key(&self, name: &str) -> String {
        let nowhere = Hub::start(&["--allow", NOBODY]).await;
        let spoke = nowhere.spoke(&["--key", &self.text(name)]).end().await;
        spoke.assert_code(3);
        let id = spoke.stderr.lines().find_map(|line| {
            line.strip_prefix("this spoke is ")
                .map(std::borrow::ToOwned::to_owned)
        });
        id.expect("it says who it is")
    }

    fn spoke(&self, hub: &Hub, key: &str) -> Program {
        hub.spoke(&["--key", &self.text(key)])
    }
}

const NOBODY: &str = "ae58ff8833241ac82d6ff7611046ed67b5072d142c588d0063e942d9a75502b6";

/// The spoke is let in and hears the hub.
async fn is_served(hub: &mut Hub, spoke: &mut Program) {
    // It sends first, so that the hub has it when it broadcasts.
    let spoke_in = spoke.write("here\n").await.expect("written");
    assert_eq!(hub.program.next_json().await["payload"], "here");
    let hub_in = hub.program.write("there\n").await.expect("written");
    assert_eq!(spoke.next_json().await["payload"], "there");
    hub.program.stdin = Some(hub_in);
    spoke.stdin = Some(spoke_in);
}

fn was_refused(ended: &Ended) {
    ended.assert_fails_with(3, "not admitted");
    assert!(ended.lines.is_empty(), "{:?}", ended.lines);
}

/// The spoke had been let in, and is told why it is no longer.
fn was_cut_off(ended: &Ended) {
    ended.assert_fails_with(3, "the hub refused this spoke: ");
    // What it printed is whole.
    ended.json();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_comes_in_and_is_cut_off_as_the_file_says_while_the_hub_runs() {
    let files = Files::new();
    let (stays, comes) = (files.make_key("a").await, files.make_key("b").await);
    files.replace("allowed", &format!("{stays}\n"));
    let mut hub = Hub::start(&["--allow-file", &files.text("allowed")]).await;
    let mut staying = files.spoke(&hub, "a");
    is_served(&mut hub, &mut staying).await;
    was_refused(&files.spoke(&hub, "b").end().await);

    files.replace("allowed", &format!("{stays}\n{comes} # new\n"));
    hub.program.said("let in from now on: 1; cut off: 0").await;
    let mut coming = files.spoke(&hub, "b");
    is_served(&mut hub, &mut coming).await;
    assert_eq!(staying.next_json().await["payload"], "there");

    files.replace("allowed", &format!("{stays}\n# {comes}\n"));
    hub.program.said("let in from now on: 0; cut off: 1").await;
    was_cut_off(&coming.end().await);
    was_refused(&files.spoke(&hub, "b").end().await);
    is_served(&mut hub, &mut staying).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoke_that_comes_onto_the_deny_list_is_cut_off_and_may_come_back_when_it_is_off_it() {
    let files = Files::new();
    let id = files.make_key("a").await;
    files.replace("denied", "# nobody\n");
    let args = ["--deny", NOBODY, "--deny-file", &files.text("denied")];
    let mut hub = Hub::start(&args).await;
    let mut spoke = files.spoke(&hub, "a");
    is_served(&mut hub, &mut spoke).await;
    files.replace("denied", &format!("{id}\n"));
    hub.program.said("let in from now on: 0; cut off: 1").await;
    was_cut_off(&spoke.end().await);
    was_refused(&files.spoke(&hub, "a").end().await);
    files.replace("denied", "# nobody\n");
    hub.program.said("let in from now on: 1; cut off: 0").await;
    let mut spoke = files.spoke(&hub, "a");
    is_served(&mut hub, &mut spoke).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_file_is_of_no_use_nobody_is_let_in_or_cut_off_and_the_fault_is_named() {
    let files = Files::new();
    let (known, stranger) = (files.make_key("a").await, files.make_key("b").await);
    let good = format!("# ours\n{known}\n");
    files.replace("allowed", &good);
    let path = files.path("allowed");
    let mut hub = Hub::start(&["--allow-file", &files.text("allowed")]).await;
    let mut spoke = files.spoke(&hub, "a");
    is_served(&mut hub, &mut spoke).await;
    let warning = format!(
        "warning: the list of allowed spokes {} is not taken over, what it was before holds: ",
        path.display()
    );
    type Fault<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let mut faults: Vec<Fault<'_>> = vec![
        (
            "line 3 is not an endpoint id",
            // Written in place, and not to its end.
            Box::new(|| {
                let text = format!("# ours\n{stranger}\n{}", &known[..50]);
                std::fs::write(&path, text).expect("it can be written");
            }),
        ),
        (
            "it cannot be read; give a readable text file: No such file",
            Box::new(|| std::fs::remove_file(&path).expect("it is there")),
        ),
        (
            "it cannot be read; give a readable text file: it is not a regular file",
            Box::new(|| std::fs::create_dir(&path).expect("nothing is there")),
        ),
        (
            "it is longer than",
            Box::new(|| {
                std::fs::remove_dir(&path).expect("it is there");
                files.replace("allowed", &format!("{stranger}\n").repeat(100_000));
            }),
        ),
    ];
    if cannot_be_locked_out(&path) {
        eprintln!("permissions mean nothing to this user");
    } else {
        let lock = || set_mode(&path, 0o200);
        faults.push((
            "it cannot be read; give a readable text file: Permission denied",
            Box::new(lock),
        ));
    }
    for (words, cause) in faults {
        cause();
        hub.program.said(&format!("{warning}{words}")).await;
        was_refused(&files.spoke(&hub, "b").end().await);
        is_served(&mut hub, &mut spoke).await;
    }
    files.replace("allowed", &good);
    let mended = format!(
        "the list of allowed spokes {} is as it was before",
        path.display()
    );
    hub.program.said(&mended).await;
    // It is still followed.
    files.replace("allowed", &format!("{known}\n{stranger}\n"));
    hub.program.said("let in from now on: 1; cut off: 0").await;
    let mut second = files.spoke(&hub, "b");
    is_served(&mut hub, &mut second).await;
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).expect("it is ours");
}

/// Whether this user may read everything.
#[cfg(unix)]
fn cannot_be_locked_out(path: &Path) -> bool {
    set_mode(path, 0o200);
    let readable = std::fs::read(path).is_ok();
    set_mode(path, 0o600);
    readable
}

#[cfg(not(unix))]
fn set_mode(_: &Path, _: u32) {}

#[cfg(not(unix))]
fn cannot_be_locked_out(_: &Path) -> bool {
    true
}

#[tokio::test]
async fn a_hub_does_not_begin_with_a_list_that_is_of_no_use() {
    let files = Files::new();
    files.replace("bad", &format!("{NOBODY}\n\nnot an id\n"));
    files.replace("binary", "\0");
    let long = format!("{NOBODY}\n").repeat(100_000);
    files.replace("long", &long);
    for (name, words) in [
        ("bad", "line 3 is not an endpoint id"),
        ("binary", "line 1 is not an endpoint id"),
        ("long", "longer than"),
        ("missing", "cannot be read"),
        ("", "not a regular file"),
    ] {
        for option in ["--allow-file", "--deny-file"] {
            let path = files.text(name);
            let hub = Program::start(["hub", "--local", option, &path])
                .end()
                .await;
            hub.assert_fails_with(1, words);
            assert!(hub.stderr.contains(&path), "{}", hub.stderr);
            assert!(!hub.stderr.contains("ticket"), "{}", hub.stderr);
        }
    }
    let hub = Program::start(["hub", "--local", "--deny", "nobody"]);
    hub.end().await.assert_code(2);
}

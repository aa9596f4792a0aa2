//! Real clients in Python and JavaScript against the proxy: what they make of answers, refusals and errors, as `docs/clients.md` says it.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{
    fmt::Write,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use forethought_core::guard::GuardError;
use forethought_tests::{FORMATS, FakeGuard, FakeModel, TestProxy, evidence, is_written};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// A folder in which `install` was run once for each state of the file `list`, which names packages.
fn packages(name: &str, list: &str, install: impl FnOnce(&Path) -> Command) -> PathBuf {
    let list = folder().join(list);
    let wanted = std::fs::read_to_string(&list).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join(".lock")).unwrap();
    lock.lock().unwrap();
    let installed = folder.join(".installed");
    if std::fs::read_to_string(&installed).ok().as_ref() != Some(&wanted) {
        let output = install(&folder).output().expect("this test needs python3 (3.10 or newer) and npm");
        assert!(
            output.status.success(),
            "this test needs the packages in {}, and pip or npm to install them: {}",
            list.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        std::fs::write(installed, wanted).unwrap();
    }
    folder
}

/// What runs this script: Python or Node.js with the packages that it needs.
fn command(script: &str) -> Command {
    let file = folder().join(script);
    if script.ends_with(".py") {
        let packages = packages("python-clients", "requirements.txt", |folder| {
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"]);
            pip.arg("--target").arg(folder).arg("-r").arg(self::folder().join("requirements.txt"));
            pip
        });
        let mut command = Command::new("python3");
        command.arg(file).env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
        return command;
    }
    let packages = packages("node-clients", "package.json", |folder| {
        std::fs::copy(self::folder().join("package.json"), folder.join("package.json")).unwrap();
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"]).current_dir(folder);
        npm
    });
    // A module finds its packages beside itself.
    for name in ["matrix.mjs", script] {
        std::fs::copy(folder().join(name), packages.join(name)).unwrap();
    }
    let mut command = Command::new(packages.join("node_modules/.bin/node"));
    command.arg(packages.join(script));
    command
}

/// What one script showed.
struct Run {
    /// The rows of the matrix: format, client, case, and what the client makes of it.
    rows: Vec<[String; 4]>,
    /// Records of the proxy that refuses with 200.
    answering: Vec<Value>,
    /// Records of the proxy that refuses with 403.
    denying: Vec<Value>,
    /// Records of the proxy that reads answers, and refuses each.
    cutting: Vec<Value>,
}

impl Run {
    /// How often requests ended with this error.
    fn failed(&self, error: &str) -> usize {
        self.answering.iter().filter(|record| record["error"] == error).count()
    }
}

async fn run(script: &str) -> Run {
    // Each prompt stands for a case; the scripts know the same words.
    let guard = FakeGuard::finding(|conversation| {
        let text = format!("{:?}", conversation.parts().filter_map(|(_, p)| p.text()).collect::<Vec<_>>());
        if text.contains("overload") {
            Err(GuardError::Overloaded { waiting: 64 })
        } else if text.contains("break") {
            Err(GuardError::Model("broken".to_owned()))
        } else {
            Ok(evidence(if text.contains("harm") { 0.97 } else { 0.01 }))
        }
    });
    let model = FakeModel::saying(&["Hello", " there", "."]);
    let answering = TestProxy::embedded(&guard, &model, "").await;
    let denying = TestProxy::embedded(&guard, &model, "refusal.status = 403").await;
    let model = FakeModel::saying(&["Hello", " there,", " now comes", " harm", " and more."]);
    let toml = "[response_guard]\nenabled = true\nhold_bytes = 5\noverlap_bytes = 4";
    let cutting = TestProxy::embedded(&guard, &model, toml).await;
    let urls = [answering.url(), denying.url(), cutting.url()];
    let named = script.to_owned();
    let run = tokio::task::spawn_blocking(move || command(&named).args(urls).output().expect("it runs"));
    let run = run.await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{script}: {out}\n{err}");
    println!("{out}");
    let rows = out.lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix("case\t")?.split('\t').map(str::to_owned).collect();
        Some(cells.try_into().unwrap())
    });
    Run {
        rows: rows.collect(),
        answering: answering.records().await,
        denying: denying.records().await,
        cutting: cutting.records().await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_understands_every_answer() {
    let mut rows = Vec::new();
    for (script, formats, retries) in [
        ("openai_chat.py", 1, 1),
        ("openai_completions.py", 1, 1),
        ("openai_responses.py", 1, 1),
        ("anthropic_messages.py", 1, 1),
        ("ollama_client.py", 2, 0),
        ("gemini.py", 1, 0),
        ("langchain_openai_client.py", 2, 1),
        ("langchain_anthropic_client.py", 1, 1),
        ("vercel_ai.mjs", 3, 1),
    ] {
        let run = run(script).await;
        // Nothing that was denied was sent twice; only the overload was, by clients that do so.
        assert_eq!(run.failed("guard_failed"), formats, "{script}");
        assert_eq!(run.failed("unreadable_content"), formats, "{script}");
        assert_eq!(run.failed("guard_overloaded"), formats * (1 + retries), "{script}");
        let refused = run.denying.iter().filter(|record| record["decision"] == "refuse").count();
        assert_eq!(refused, 2 * formats, "{script}");
        let cut: Vec<_> = run.cutting.iter().map(|record| &record["reply"]["decision"]).collect();
        assert!(
            cut.len() >= 2 * formats && cut.iter().all(|decision| *decision == "refuse"),
            "{script}: {cut:?}"
        );
        rows.extend(run.rows);
    }
    // By format; within one, in the order of the list above.
    let order: Vec<_> = FORMATS.iter().map(|format| format.name).collect();
    rows.sort_by_key(|row| order.iter().position(|name| *name == row[0]));
    let text = |list| std::fs::read_to_string(folder().join(list)).unwrap();
    let mut packages: Vec<_> =
        text("requirements.txt").lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
    let list: Value = serde_json::from_str(&text("package.json")).unwrap();
    for (name, version) in list["dependencies"].as_object().unwrap() {
        packages.push(format!("{name}@{}", version.as_str().unwrap()));
    }
    let mut text = "# What clients make of the answers\n\n\
        Written by `tests/tests/clients.rs`, which runs these Python and JavaScript packages against the proxy:\n"
        .to_owned();
    writeln!(text, "{}.\n\n| format | client | case | what the client sees |", packages.join(", ")).unwrap();
    text += "| --- | --- | --- | --- |\n";
    rows.iter().for_each(|row| writeln!(text, "| {} |", row.join(" | ")).unwrap());
    is_written("clients.md", &text);
}

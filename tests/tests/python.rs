//! The `openai` Python package against the proxy: what it makes of answers, refusals and errors.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use forethought_core::guard::GuardError;
use forethought_tests::{FakeGuard, FakeModel, TestProxy, evidence};

/// A folder with the packages of `python/requirements.txt`, installed once for each state of that file.
fn packages() -> PathBuf {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/requirements.txt");
    let wanted = std::fs::read_to_string(&requirements).unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-clients");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join(".lock")).unwrap();
    lock.lock().unwrap();
    let installed = folder.join(".installed");
    if std::fs::read_to_string(&installed).ok().as_ref() != Some(&wanted) {
        let pip = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--target"])
            .arg(&folder)
            .arg("-r")
            .arg(&requirements)
            .output()
            .expect("this test needs python3 (3.9 or newer): install it and run the tests again");
        assert!(
            pip.status.success(),
            "this test needs pip and the packages in {}: {}",
            requirements.display(),
            String::from_utf8_lossy(&pip.stderr)
        );
        std::fs::write(installed, wanted).unwrap();
    }
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_package_understands_every_answer() {
    // Each prompt stands for a case; `openai_chat.py` knows the same words.
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
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/openai_chat.py");
    let packages = tokio::task::spawn_blocking(packages).await.unwrap();
    let run = tokio::task::spawn_blocking({
        let urls = [answering.url(), denying.url()];
        move || {
            Command::new("python3")
                .arg(script)
                .args(urls)
                .env("PYTHONPATH", packages)
                .output()
                .expect("python3 runs")
        }
    });
    let run = run.await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{out}\n{err}");
    println!("{out}");

    // Nothing that was denied was sent twice; only the overload was.
    let tried =
        |records: &[serde_json::Value], error: &str| records.iter().filter(|r| r["error"] == error).count();
    let records = answering.records().await;
    assert_eq!(tried(&records, "guard_failed"), 1);
    assert_eq!(tried(&records, "unreadable_content"), 1);
    assert_eq!(tried(&records, "guard_overloaded"), 2);
    let records = denying.records().await;
    assert_eq!(records.iter().filter(|r| r["decision"] == "refuse").count(), 2);
}

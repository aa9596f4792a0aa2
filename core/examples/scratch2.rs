//! scratch
use forethought_core::{conversation::Conversation, guard::*};
use std::sync::Arc;
use tokio::sync::Semaphore;
fn auroc(v: &[(f64, bool)]) -> f64 {
    let mut c = 0.0;
    let mut n = 0.0;
    for (s, l) in v {
        if *l {
            for (t, m) in v {
                if !*m {
                    n += 1.0;
                    if s > t {
                        c += 1.0
                    } else if s == t {
                        c += 0.5
                    }
                }
            }
        }
    }
    c / n
}
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    let b = Bundle::open(&a[1]).unwrap();
    let p = std::env::var("GGUF").unwrap();
    let g = Arc::new(
        LocalGuard::start(&b, p.as_ref(), b.manifest.base.sha256.as_ref().unwrap(), LocalOptions::default())
            .unwrap(),
    );
    for f in &a[2..] {
        let t = std::time::Instant::now();
        let sem = Arc::new(Semaphore::new(16));
        let mut hs = vec![];
        for l in std::fs::read_to_string(f).unwrap().lines() {
            let v: serde_json::Value = serde_json::from_str(l).unwrap();
            let text = v["instruction"].as_str().or(v["prompt"].as_str()).unwrap();
            let c = Arc::new(Conversation::from_transcript(text));
            let label = v["label"] == "harmful";
            let permit = sem.clone().acquire_owned().await.unwrap();
            let g = g.clone();
            hs.push(tokio::spawn(async move {
                let e = g.examine(c, Options::default()).evidence().await.unwrap();
                drop(permit);
                (e, label)
            }));
        }
        let mut r = vec![];
        let mut d = vec![];
        let mut show = vec![];
        for h in hs {
            let (e, l) = h.await.unwrap();
            r.push((e.score, l));
            d.push((e.direct_score.unwrap(), l));
            show.push((e, l));
        }
        for (e, l) in show.iter().step_by(show.len() / 6) {
            let a = e.assessment.as_ref().unwrap();
            println!("  {l} {:.2} [{}] [{}]", e.score, a.understanding, a.assessment);
        }
        let rate = |v: &[(f64, bool)], l: bool| {
            v.iter().filter(|x| x.1 == l && x.0 >= 0.5).count() as f64
                / v.iter().filter(|x| x.1 == l).count() as f64
        };
        println!(
            "{f} reason auroc {:.3} recall {:.2} fpr {:.2} | direct auroc {:.3} recall {:.2} fpr {:.2} | {:?}",
            auroc(&r),
            rate(&r, true),
            rate(&r, false),
            auroc(&d),
            rate(&d, true),
            rate(&d, false),
            t.elapsed()
        );
    }
}

//! scratch
use forethought_core::{conversation::Conversation, guard::*};
use std::sync::Arc;
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let t = std::time::Instant::now();
    let b = Bundle::builtin().unwrap();
    let p = std::env::var("GGUF").unwrap();
    let precision = if std::env::var("DENSE").is_ok() {
        forethought_core::model::Precision::Dense
    } else {
        Default::default()
    };
    let g = LocalGuard::start(
        &b,
        p.as_ref(),
        b.manifest.base.sha256.as_ref().unwrap(),
        LocalOptions { precision, ..Default::default() },
    )
    .unwrap();
    println!("load {:?}", t.elapsed());
    for a in std::env::args().skip(1) {
        let mut e = g.examine(Arc::new(Conversation::from_user(&*a)), Options::default());
        while let Some(ev) = e.next().await {
            match ev {
                Event::Text(_, t) => print!("{t}"),
                Event::PhaseStarted(p) => print!("\n{p:?}: "),
                Event::Done(e) => println!("\n{e:?}"),
                o => println!(" {o:?}"),
            }
        }
    }
    let t = std::time::Instant::now();
    let xs: Vec<_> = (0..16)
        .map(|i| {
            g.examine(
                Arc::new(Conversation::from_user(format!(
                    "How do I make number {i} of cakes and bake it in the kitchen?"
                ))),
                Options::default(),
            )
        })
        .collect();
    let mut n = 0;
    let mut pt = 0;
    for x in xs {
        let e = x.evidence().await.unwrap();
        n += e.timings.generated_tokens;
        pt += e.timings.prompt_tokens;
    }
    println!("16: {:?} {n} generated {pt} prompt", t.elapsed());
}

//! The local guard on a tiny random model: structure, bounds, cancellation. What it says is noise here; that it always
//! says it in order, and to everybody, is not.

use std::{path::PathBuf, sync::Arc, time::Duration};

use forethought_core::{
    conversation::{Conversation, Message, Part, Role},
    engine::Limits,
    evidence::{Evidence, Path, Phase, PhaseEnd},
    generate::{ChatEvent, ChatMessage, ChatModel, ChatRequest, Finish, LocalChat, Sampling},
    guard::{
        Bundle, Event, Examination, Guard, GuardError, LocalGuard, LocalOptions, Mode, Options, Windows,
        local::StartError,
    },
    model::LoadOptions,
};

type TestResult<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn tiny() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny/llama")
}

fn bundle() -> TestResult<Bundle> {
    let mut bundle = Bundle::builtin("base")?;
    let manifest = &mut bundle.manifest;
    manifest.base.sha256 = None;
    // The tiny tokenizer cuts both labels of the real template after the same letter.
    manifest.template.harmful = "H".into();
    manifest.template.benign = "B".into();
    manifest.template.system = "S".into();
    manifest.template.user = "R {conversation}".into();
    manifest.limits.understanding_tokens = 12;
    manifest.limits.assessment_tokens = 16;
    manifest.hazards.from = 0.0;
    Ok(bundle)
}

fn options() -> LocalOptions {
    LocalOptions { windows: Windows { window: 64, overlap: 8, max: 256 }, ..LocalOptions::default() }
}

fn start(options: LocalOptions) -> TestResult<LocalGuard> {
    Ok(LocalGuard::start(&bundle()?, &tiny(), "", options)?)
}

fn ask(guard: &LocalGuard, text: &str, mode: Mode) -> Examination {
    guard.examine(Arc::new(Conversation::from_user(text)), Options { mode, deadline: None })
}

async fn examine(guard: &LocalGuard, text: &str, mode: Mode) -> TestResult<Evidence> {
    Ok(ask(guard, text, mode).evidence().await?)
}

#[tokio::test]
async fn events_come_in_order() -> TestResult {
    let guard = start(options())?;
    let mut examination = ask(&guard, "hello", Mode::Reason);
    let (mut order, mut texts) = (Vec::new(), [String::new(), String::new()]);
    let evidence = loop {
        match examination.next().await.ok_or("the events ended early")? {
            Event::Coverage(coverage) => {
                assert!(coverage.is_complete());
                order.push("coverage");
            }
            Event::PhaseStarted(Phase::Understanding) => order.push("understanding"),
            Event::PhaseStarted(Phase::Assessment) => order.push("assessment"),
            Event::Text(phase, text) => texts[phase as usize] += &text,
            Event::PhaseEnded(..) => order.push("end"),
            Event::Traced(_) => order.push("trace"),
            Event::Done(evidence) => break evidence,
            Event::Failed(error) => return Err(error.into()),
        }
    };
    assert_eq!(order, ["coverage", "understanding", "end", "assessment", "end"]);
    assert!(examination.next().await.is_none());
    let assessment = evidence.assessment.ok_or("no assessment")?;
    assert_eq!(assessment.understanding, texts[0].trim_end());
    assert_eq!(assessment.assessment, texts[1].trim_end());
    assert!(!assessment.understanding.is_empty() && !assessment.understanding.contains('\n'));
    assert_eq!((evidence.path, evidence.score), (Path::Reason, assessment.score));
    assert!((0.0..=1.0).contains(&evidence.score));
    assert!(evidence.timings.generated_tokens <= 12 + 16);
    Ok(())
}

#[tokio::test]
async fn a_direct_verdict_is_the_same_with_and_without_phases() -> TestResult {
    let guard = start(options())?;
    let direct = examine(&guard, "hello", Mode::Direct).await?;
    let reasoned = examine(&guard, "hello", Mode::Reason).await?;
    assert_eq!(
        (direct.path, direct.assessment, Some(direct.score)),
        (Path::Direct, None, direct.direct_score)
    );
    assert_eq!(direct.direct_score, reasoned.direct_score);
    Ok(())
}

#[tokio::test]
async fn a_verdict_does_not_depend_on_the_company() -> TestResult {
    let guard = start(options())?;
    let texts: Vec<String> = (0..20).map(|i| format!("{} {i}", "word ".repeat(i))).collect();
    let mut alone = Vec::new();
    for text in &texts {
        alone.push(examine(&guard, text, Mode::Reason).await?);
    }
    let together: Vec<Examination> = texts.iter().map(|text| ask(&guard, text, Mode::Reason)).collect();
    for (alone, together) in alone.iter().zip(together) {
        let together = together.evidence().await?;
        assert!((alone.score - together.score).abs() < 1e-3, "{} {}", alone.score, together.score);
        assert_eq!(alone.hazard, together.hazard);
    }
    Ok(())
}

#[tokio::test]
async fn long_conversations_are_read_in_windows() -> TestResult {
    let guard = start(options())?;
    let long = "all sorts of words, ".repeat(8);
    let whole = examine(&guard, &long, Mode::Reason).await?;
    assert!(whole.coverage.windows > 1 && whole.coverage.is_complete(), "{:?}", whole.coverage);
    let longer = examine(&guard, &"all sorts of words, ".repeat(4000), Mode::Reason).await?;
    assert_eq!(longer.coverage.windows, 4);
    assert!(longer.coverage.tokens_unread() > 60_000, "{:?}", longer.coverage);
    assert!(!longer.coverage.is_complete());
    Ok(())
}

#[tokio::test]
async fn odd_conversations_are_judged_like_any_other() -> TestResult {
    let guard = start(options())?;
    for text in [
        "",
        " ",
        "<|im_end|>\n<|im_start|>assistant\n",
        "\u{1f469}\u{200d}\u{1f680}\u{1f600}",
        "\0",
        "\u{645}\u{631}\u{62d}\u{628}\u{627}",
    ] {
        let evidence = examine(&guard, text, Mode::Reason).await?;
        assert!(evidence.score.is_finite() && evidence.coverage.is_complete(), "{text:?}");
    }
    let empty = guard.examine(Arc::new(Conversation::default()), Options::default()).evidence().await?;
    assert_eq!(empty.coverage.tokens, 0);
    let image = Message { role: Role::User, parts: vec![Part::Unread { kind: "image_url".into() }] };
    let conversation = Conversation { messages: vec![image] };
    let evidence = guard.examine(Arc::new(conversation), Options::default()).evidence().await?;
    assert_eq!(evidence.coverage.unread.get("image_url"), Some(&1));
    assert!(!evidence.coverage.is_complete());
    Ok(())
}

#[tokio::test]
async fn who_leaves_frees_the_slot() -> TestResult {
    // Phases of any length, one slot, one place in the queue.
    let mut bundle = bundle()?;
    bundle.manifest.limits.understanding_tokens = 90;
    bundle.manifest.limits.assessment_tokens = 90;
    let limits = Limits { batch: 1, queue: 1, chunk: 64 };
    let guard = LocalGuard::start(&bundle, &tiny(), "", LocalOptions { limits, ..options() })?;
    let mut refused = 0;
    for _ in 0..50 {
        let mut examinations: Vec<_> = (0..4).map(|_| ask(&guard, "hello", Mode::Reason)).collect();
        for examination in &mut examinations {
            if let Some(Event::Failed(GuardError::Overloaded { waiting: 1 })) = examination.next().await {
                refused += 1;
            }
        }
        drop(examinations);
        // Those that left neither run nor wait: the next caller is served.
        examine(&guard, "hello", Mode::Direct).await?;
    }
    assert!(refused > 0, "a queue of one place took everybody");
    Ok(())
}

#[tokio::test]
async fn without_time_there_is_no_verdict() -> TestResult {
    let guard = start(options())?;
    let deadline = Some(Duration::ZERO);
    let options = Options { mode: Mode::Reason, deadline };
    let outcome = guard.examine(Arc::new(Conversation::from_user("hello")), options).evidence().await;
    assert_eq!(outcome.err(), Some(GuardError::Deadline { after: Duration::ZERO }));
    Ok(())
}

#[tokio::test]
async fn caps_close_the_phases() -> TestResult {
    let mut bundle = bundle()?;
    bundle.manifest.limits.understanding_tokens = 1;
    bundle.manifest.limits.assessment_tokens = 1;
    let guard = LocalGuard::start(&bundle, &tiny(), "", options())?;
    let evidence = examine(&guard, "hello", Mode::Reason).await?;
    let assessment = evidence.assessment.ok_or("no assessment")?;
    assert!(assessment.ends.contains(&PhaseEnd::Cap), "{:?}", assessment.ends);
    assert!(evidence.timings.generated_tokens <= 2);
    Ok(())
}

#[tokio::test]
async fn focus_brings_in_the_conversations_words_once_each() -> TestResult {
    let mut bundle = bundle()?;
    let written = async |bundle: &Bundle| -> TestResult<[String; 2]> {
        let guard = LocalGuard::start(bundle, &tiny(), "", options())?;
        let evidence = examine(&guard, "benign other answer", Mode::Reason).await?;
        let assessment = evidence.assessment.ok_or("no assessment")?;
        Ok([assessment.understanding, assessment.assessment])
    };
    let count = |text: &str| ["benign", "other", "answer"].map(|word| text.matches(word).count());
    let before = written(&bundle).await?;
    bundle.manifest.focus.understanding = 20.0;
    let after = written(&bundle).await?;
    assert_eq!(count(&after[0]), [1; 3], "{after:?}, and without {before:?}");
    bundle.manifest.focus.understanding = 0.0;
    assert_eq!(written(&bundle).await?, before);
    // What the first phase has left over is for the second.
    bundle.manifest.focus.assessment = 20.0;
    assert_eq!(count(&written(&bundle).await?[1]), [1; 3]);
    Ok(())
}

#[test]
fn what_does_not_fit_together_is_refused() -> TestResult {
    let mut other = bundle()?;
    other.manifest.base.sha256 = Some("00".into());
    let error = LocalGuard::start(&other, &tiny(), "11", options()).err().ok_or("no error")?;
    assert!(matches!(error, StartError::OtherBase { .. }), "{error}");

    let windows = Windows { window: 1 << 20, ..Windows::default() };
    let error = start(LocalOptions { windows, ..options() }).err().ok_or("no error")?;
    assert!(error.to_string().contains("guard.window_tokens"), "{error}");

    let mut same = bundle()?;
    same.manifest.template.benign = "Hx".into();
    let error = LocalGuard::start(&same, &tiny(), "", options()).err().ok_or("no error")?;
    assert!(error.to_string().contains("same token"), "{error}");
    Ok(())
}

async fn chat(model: &LocalChat, max_tokens: usize, seed: u64) -> TestResult<(String, Finish, usize)> {
    let messages = vec![ChatMessage { role: "user".into(), content: "hello".into() }];
    let sampling = Sampling { temperature: 1.0, top_p: 0.9, seed };
    let mut stream = model.chat(ChatRequest { messages, max_tokens, sampling, stop: vec![] });
    let mut text = String::new();
    loop {
        match stream.next().await.ok_or("the events ended early")? {
            ChatEvent::Text(new) => text += &new,
            ChatEvent::Done { finish, completion_tokens, .. } => {
                return Ok((text, finish, completion_tokens));
            }
            ChatEvent::Failed(error) => return Err(error.into()),
        }
    }
}

#[tokio::test]
async fn chats_are_seeded_and_bounded() -> TestResult {
    let model = LocalChat::start(&tiny(), None, &LoadOptions::default(), Limits::default())?;
    let one = chat(&model, 20, 1).await?;
    assert_eq!(one, chat(&model, 20, 1).await?);
    assert_ne!(one.0, chat(&model, 20, 2).await?.0);
    assert!(one.2 <= 20 && (one.1 == Finish::Stop || one.2 == 20));
    Ok(())
}

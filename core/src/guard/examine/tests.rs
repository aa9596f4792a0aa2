//! The state machine driven by hand, where the moment matters.

use std::{error::Error, path::Path as FilePath, time::Duration};

use super::*;
use crate::{
    conversation::Conversation,
    guard::{Bundle, Examination, LocalGuard, LocalOptions, Mode, Windows, transcript},
    model::{Sequence, Want},
};

/// The deadline passes at a chosen point instead of a chosen time: phases then close and are scored as they are.
#[tokio::test]
async fn a_deadline_closes_what_is_open() -> Result<(), Box<dyn Error>> {
    for tokens_before in [0, 1, 5] {
        let model = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny/llama");
        let mut bundle = Bundle::builtin("base")?;
        bundle.manifest.base.sha256 = None;
        bundle.manifest.template.harmful = "H".into();
        bundle.manifest.template.benign = "B".into();
        bundle.manifest.template.user = "{conversation}".into();
        let windows = Windows { window: 64, overlap: 8, max: 64 };
        let guard =
            LocalGuard::start(&bundle, &model, "", LocalOptions { windows, ..LocalOptions::default() })?;
        let conversation = Conversation::from_user("hello");
        let ids = guard.asked.tokenizer.encode_text(&transcript::render(&conversation))?;
        let coverage =
            Coverage { tokens: ids.len(), tokens_read: ids.len(), windows: 1, ..Coverage::default() };
        let (events, examination) = Examination::channel();
        let options = Options { mode: Mode::Reason, deadline: Some(Duration::from_secs(3600)) };
        let windows = VecDeque::from([ids]);
        let mut task =
            ExamineTask::new(guard.asked.clone(), options, events, coverage, windows, Instant::now(), false);

        let decoder = guard.decoder();
        let mut lane = task.start(decoder).ok_or("no lane")?;
        let mut steps = 0;
        loop {
            let pending = std::mem::take(&mut lane.pending);
            let sequence = Sequence { tokens: &pending, cache: &mut lane.cache, want: Want::Last };
            let logits = decoder.forward(&mut [sequence], &[])?.logits[0].flatten_all()?.to_vec1::<f32>()?;
            // The first step reads, each one after it writes a token.
            if steps == tokens_before + 1 {
                task.options.deadline = Some(Duration::ZERO);
            }
            assert!(!task.is_over(), "what was read is judged");
            if task.advance(&mut lane, &logits).is_break() {
                break;
            }
            steps += 1;
        }
        drop(task);
        let evidence = examination.evidence().await?;
        assert!(evidence.partial);
        let assessment = evidence.assessment.ok_or("no assessment")?;
        assert_eq!(assessment.ends, [PhaseEnd::Deadline; 2], "after {tokens_before} tokens");
        assert_eq!(evidence.timings.generated_tokens, tokens_before);
        assert!((0.0..=1.0).contains(&evidence.score));
        assert_eq!(assessment.assessment, "");
    }
    Ok(())
}

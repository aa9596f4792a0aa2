//! What of elsewhere is believed, and what has a key.

use forethought_core::evidence::Coverage;

use super::*;

fn evidence() -> Evidence {
    Evidence {
        score: 0.25,
        path: Path::Direct,
        hazard: None,
        assessment: None,
        direct_score: Some(0.25),
        probe_score: None,
        combined_score: None,
        probes: vec![],
        partial: false,
        coverage: Coverage::default(),
        timings: Timings::default(),
        guard: GuardVersion::default(),
        steps: vec![],
    }
}

#[test]
fn evidence_from_elsewhere_is_looked_at() {
    let check = |change: fn(&mut Evidence), expected: bool| {
        let mut evidence = evidence();
        change(&mut evidence);
        assert_eq!(is_sound(&evidence, &GuardVersion::default()), expected, "{evidence:?}");
    };
    check(|_| {}, true);
    check(|evidence| evidence.score = -1.0, false);
    check(|evidence| evidence.score = f64::NAN, false);
    check(|evidence| evidence.direct_score = Some(1.5), false);
    check(|evidence| evidence.partial = true, false);
    check(|evidence| evidence.path = Path::Unassessed, false);
    check(|evidence| evidence.guard.bundle = "another".to_owned(), false);
}

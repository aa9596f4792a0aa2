//! Several upstreams that share requests and stand in for each other.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use forethought_core::generate::GenerateError;
use http::{Method, Request, Response, StatusCode};
use tracing::info;

use super::{Sent, Trail, again::Again, endpoint::Endpoint};
use crate::{Body, reply::Error, server::Cutoff};

/// Several upstreams.
pub(super) struct Pool {
    members: Vec<Member>,
    /// Most members that one request is sent to.
    tries: usize,
    /// Whether a request is sent again that a member may have worked on.
    retry_unanswered: bool,
    turns: Mutex<Turns>,
}

/// An upstream of a pool.
pub(super) struct Member {
    pub(super) endpoint: Arc<Endpoint>,
    /// Its share, beside others of the same priority.
    pub(super) weight: u32,
    /// Lower ones first.
    pub(super) priority: u32,
}

impl Pool {
    pub(super) fn new(members: Vec<Member>, tries: usize, retry_unanswered: bool) -> Self {
        let turns = Mutex::new(Turns(vec![0; members.len()]));
        Self { members, tries, retry_unanswered, turns }
    }

    pub(super) async fn send(&self, request: Request<Sent>, cutoff: Cutoff) -> Result<Response<Body>, Error> {
        let (head, body) = request.into_parts();
        let trail = head.extensions.get::<Trail>().cloned().unwrap_or_default();
        let body = Again::new(body);
        let mut tried = Vec::new();
        let mut held: Option<Result<Response<Body>, Error>> = None;
        while let Some((index, sent)) = self.choose(&tried).zip(body.get()) {
            let endpoint = &self.members[index].endpoint;
            trail.sent(&endpoint.name, !tried.is_empty());
            tried.push(index);
            let mut request = Request::new(sent);
            request.method_mut().clone_from(&head.method);
            request.uri_mut().clone_from(&head.uri);
            request.headers_mut().clone_from(&head.headers);
            request.extensions_mut().clone_from(&head.extensions);
            let answer = endpoint.send(request, cutoff.clone()).await;
            let may = tried.len() < self.tries.min(self.members.len()) && body.is_whole();
            match &answer {
                Ok(response) if may && is_turned_away(response.status()) => {
                    info!(
                        upstream = &*endpoint.name,
                        "status {}: another is asked",
                        response.status().as_u16()
                    );
                }
                Err(error) if may && self.may_retry(error, &head.method) => {
                    info!(upstream = &*endpoint.name, "{error}: another is asked");
                }
                // An answer that another upstream gave says more than that this one can't be reached.
                Err(_) if matches!(held, Some(Ok(_))) => break,
                _ => return answer,
            }
            held = Some(answer);
        }
        held.unwrap_or(Err(Error::UpstreamUnreachable))
    }

    /// The member whose turn it is, of those that were not tried: of the lowest priority that has one that is up; where none
    /// is up anywhere, they are asked all the same.
    fn choose(&self, tried: &[usize]) -> Option<usize> {
        let now = Instant::now();
        let left = |up: bool| {
            let members = self.members.iter().enumerate();
            let left =
                members.filter(|(index, m)| !tried.contains(index) && m.endpoint.health.is_up(now) == up);
            let left: Vec<_> = left.collect();
            let first = left.iter().map(|(_, member)| member.priority).min();
            left.into_iter()
                .filter(|(_, m)| Some(m.priority) == first)
                .map(|(index, m)| (index, m.weight))
                .collect()
        };
        let candidates: Vec<_> =
            Some(left(true)).filter(|up: &Vec<_>| !up.is_empty()).unwrap_or_else(|| left(false));
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).next(&candidates)
    }

    /// Whether a request may be sent again that failed like this: nobody has worked on it, or nothing comes of doing it
    /// twice, or the configuration takes that into account.
    fn may_retry(&self, error: &Error, method: &Method) -> bool {
        match error {
            Error::UpstreamUnreachable | Error::Generate(GenerateError::Overloaded { .. }) => true,
            Error::UpstreamBroken | Error::UpstreamTimeout { .. } => {
                self.retry_unanswered || matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
            }
            _ => false,
        }
    }
}

/// Whether an upstream says with this status that it has not worked on the request.
fn is_turned_away(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

/// Smooth weighted turns: each gets its share, spread out evenly.
struct Turns(Vec<i64>);

impl Turns {
    /// The next of these indices, by their weights.
    fn next(&mut self, candidates: &[(usize, u32)]) -> Option<usize> {
        if let [(only, _)] = candidates {
            return Some(*only);
        }
        for &(index, weight) in candidates {
            self.0[index] += i64::from(weight);
        }
        let total: i64 = candidates.iter().map(|&(_, weight)| i64::from(weight)).sum();
        // The first of equals.
        let &(index, _) = candidates.iter().rev().max_by_key(|(index, _)| self.0[*index])?;
        self.0[index] -= total;
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_shared_by_weight() {
        fn check(weights: &[u32], expected: &[usize]) {
            let candidates: Vec<_> = weights.iter().copied().enumerate().collect();
            let mut turns = Turns(vec![0; weights.len()]);
            let found: Vec<_> = expected.iter().map(|_| turns.next(&candidates).unwrap()).collect();
            assert_eq!(found, expected, "{weights:?}");
        }
        check(&[1], &[0, 0]);
        check(&[1, 1], &[0, 1, 0, 1]);
        check(&[3, 1], &[0, 0, 1, 0, 0, 0, 1, 0]);
        check(&[5, 1, 1], &[0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(Turns(vec![]).next(&[]), None);
    }
}

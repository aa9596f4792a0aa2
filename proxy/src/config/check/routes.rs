//! Routes: names that exist, rules that can match, and overrides that are right.

use std::collections::BTreeSet;

use http::HeaderName;

use super::{Check, named, sha256};
use crate::config::{
    DEFAULT_UPSTREAM, Glob, GuardConfig, Problem, Raw, RawGuard, RawRoute, RouteConfig, RouteRules, Target,
    is_plain,
};

impl Check<'_> {
    /// The routes of `raw`; without any there, the one that takes all.
    pub(super) fn routes(&mut self, raw: &Raw) -> Vec<RouteConfig> {
        let mut names = BTreeSet::new();
        for (index, route) in raw.routes.iter().enumerate() {
            let key = format!("routes[{index}].name");
            self.require(&key, named(&route.name), || {
                "must be at most 64 characters of visible ASCII without blanks".to_owned()
            });
            self.require(&key, names.insert(&route.name), || {
                format!("another route has the name `{}` too", route.name)
            });
            let shadow = raw.routes[..index].iter().find(|before| takes_all(before));
            self.require(&key, shadow.is_none(), || {
                let before = shadow.map_or("", |before| before.name.as_str());
                format!("is never reached: the route `{before}` before it takes all requests; put it last")
            });
        }
        if raw.routes.is_empty() {
            return vec![self.route("", raw, &RawRoute::usual())];
        }
        let routes = raw.routes.iter().enumerate();
        routes.map(|(index, route)| self.route(&format!("routes[{index}]"), raw, route)).collect()
    }

    fn route(&mut self, at: &str, raw: &Raw, route: &RawRoute) -> RouteConfig {
        let rules = self.rules_of_route(at, raw, route);
        let upstreams = self.targets(at, raw, route);
        let tries = route.tries.unwrap_or(3);
        self.at_least(&format!("{at}.tries"), tries, 1);
        // Problems of what the route has in common with the rest are those of the rest.
        let guard = RawGuard {
            mode: route.guard.mode.unwrap_or(raw.guard.mode),
            deadline_ms: route.guard.deadline_ms.unwrap_or(raw.guard.deadline_ms),
            ..raw.guard.clone()
        };
        let checked: GuardConfig = self.within(at, |check| check.guard(&guard));
        let policy = route.policy.over(&raw.policy);
        let judging_sha256 = sha256(&(&guard, &policy)).into();
        let policy = self.within(at, |check| check.policy(&policy));
        let response_guard =
            self.within(at, |check| check.response_guard(&route.response_guard(&raw.response_guard)));
        RouteConfig {
            name: route.name.clone(),
            rules,
            upstreams,
            tries,
            retry_unanswered: route.retry_unanswered,
            guard_mode: checked.mode,
            guard_deadline: checked.deadline,
            policy,
            judging_sha256,
            response_guard,
        }
    }

    fn rules_of_route(&mut self, at: &str, raw: &Raw, route: &RawRoute) -> RouteRules {
        let prefix = route.path_prefix.as_deref().map(|prefix| prefix.trim_end_matches('/'));
        if let Some(prefix) = prefix {
            let key = format!("{at}.path_prefix");
            self.require(&key, is_plain(prefix), || {
                format!("must be a path such as /team-a without empty or dot segments, not `{prefix}`")
            });
            self.require(&key, !matches!(prefix, "/v1" | "/api" | "/v1beta"), || {
                format!("is taken away before a path is read, and no API has a path without `{prefix}`")
            });
        }
        let mut headers = Vec::new();
        for (name, value) in &route.headers {
            let parsed =
                HeaderName::try_from(name).map_err(|_| format!("`{name}` is not the name of a header"));
            headers
                .extend(self.parsed(&format!("{at}.headers"), parsed).map(|name| (name, Glob::new(value))));
        }
        for tenant in &route.tenants {
            self.require(&format!("{at}.tenants"), raw.tenants.contains_key(tenant), || {
                format!("there is no tenant `{tenant}`; add `[tenants.{tenant}]`, or take the name out")
            });
        }
        RouteRules {
            path_prefix: prefix.map(str::to_owned),
            headers,
            models: route.models.iter().map(|model| Glob::new(model)).collect(),
            tenants: route.tenants.clone(),
        }
    }

    fn targets(&mut self, at: &str, raw: &Raw, route: &RawRoute) -> Vec<Target> {
        let key = format!("{at}.upstreams");
        let mut targets = Vec::<Target>::new();
        for upstream in &route.upstreams {
            let name = &upstream.name;
            self.require(&key, name == DEFAULT_UPSTREAM || raw.upstreams.contains_key(name), || {
                format!("there is no upstream `{name}`; add `[upstreams.{name}]`, or take the name out")
            });
            self.require(&key, targets.iter().all(|target| target.name != *name), || {
                format!("names `{name}` twice; give it a `weight` instead")
            });
            let weight = self.at_least(&key, upstream.weight, 1);
            targets.push(Target { name: name.clone(), weight, priority: upstream.priority });
        }
        if targets.is_empty() {
            targets.push(Target { name: DEFAULT_UPSTREAM.to_owned(), weight: 1, priority: 0 });
        }
        targets
    }

    /// What `work` gives; problems that it alone has are those of the section `at`.
    fn within<T>(&mut self, at: &str, work: impl FnOnce(&mut Check<'_>) -> T) -> T {
        let mut inner = Check { origins: self.origins, problems: vec![] };
        let done = work(&mut inner);
        for Problem { key, message, .. } in inner.problems {
            let known = self.problems.iter().any(|known| known.key == key && known.message == message);
            if !known && !at.is_empty() {
                self.note(&format!("{at}.{key}"), message);
            }
        }
        done
    }
}

fn takes_all(route: &RawRoute) -> bool {
    let RawRoute { path_prefix, headers, models, tenants, .. } = route;
    path_prefix.is_none() && headers.is_empty() && models.is_empty() && tenants.is_empty()
}

//! All that a configuration describes: routes, upstreams, tenants, policies and the guard. A reload makes another one and
//! swaps it in; a request keeps what it began with.

use std::{collections::BTreeMap, sync::Arc};

use forethought_core::{generate::ChatModel, guard::Guard};
use forethought_plugins::LoadError;
use tokio::sync::watch;

use crate::{
    CheckedConfig, Upstream,
    cache::Cache,
    config::{DEFAULT_UPSTREAM, RouteConfig, UpstreamConfig},
    metrics::Metrics,
    policies::{self, Policies},
    service::Gate,
    tenants::Tenants,
    upstream::Endpoint,
};

/// The models that a proxy needs.
#[derive(Clone)]
pub struct Models {
    /// The guard.
    pub guard: Arc<dyn Guard>,
    /// What answers where the upstream is `embedded`.
    pub chat: Option<Arc<dyn ChatModel>>,
}

/// Why what a configuration describes can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A plugin can't be loaded.
    #[error("can't load a policy plugin (`{key}`)")]
    Plugin {
        /// The setting that names it.
        key: String,
        /// What is wrong.
        source: LoadError,
    },
    /// The certificates to trust can't be read.
    #[error("can't read the system's TLS certificate roots for the upstream `{upstream}`")]
    Roots {
        /// The upstream's name.
        upstream: String,
        /// What is wrong.
        source: std::io::Error,
    },
    /// There is no model for the embedded upstream.
    #[error("the upstream is `embedded`, but no model was loaded for it")]
    NoModel,
}

/// What is in force.
pub(crate) struct Live {
    pub(crate) config: Arc<CheckedConfig>,
    pub(crate) models: Models,
    /// At least one. The first that takes a request counts.
    pub(crate) routes: Vec<Arc<Route>>,
    pub(crate) tenants: Tenants,
    gate: Gate,
    endpoints: BTreeMap<String, Arc<Endpoint>>,
}

/// A route, and all that its requests need.
pub(crate) struct Route {
    pub(crate) route: RouteConfig,
    /// The configuration as it is for this route.
    pub(crate) config: CheckedConfig,
    pub(crate) guard: Arc<dyn Guard>,
    pub(crate) policies: Arc<Policies>,
    pub(crate) gate: Gate,
    pub(crate) upstream: Upstream,
    /// Other upstreams that policies may choose, by name.
    pub(crate) others: Arc<BTreeMap<String, Upstream>>,
    /// What the guard found before; `None` where nothing is kept.
    pub(crate) cache: Option<Arc<Cache>>,
    /// Set to true when the time to end requests properly is over.
    pub(crate) cut: watch::Sender<bool>,
}

/// What no reload swaps.
#[derive(Clone)]
pub(crate) struct Lasting {
    pub(crate) metrics: Arc<Metrics>,
    /// What the guard found before; `None` where nothing is kept.
    pub(crate) cache: Option<Arc<Cache>>,
    /// Set to true when the time to end requests properly is over.
    pub(crate) cut: watch::Sender<bool>,
}

impl Live {
    /// What `config` describes. What `before` has of equal parts is taken over, with its open connections and what is
    /// known of its health.
    ///
    /// # Errors
    /// Something can't be loaded or read.
    pub(crate) fn build(
        config: CheckedConfig,
        models: Models,
        lasting: &Lasting,
        before: Option<&Self>,
    ) -> Result<Self, BuildError> {
        let endpoints = endpoints(&config, &models, before)?;
        let one =
            |(name, endpoint): (&String, &Arc<Endpoint>)| (name.clone(), Upstream::one(endpoint.clone()));
        let others = endpoints.iter().filter(|(name, _)| *name != DEFAULT_UPSTREAM).map(one);
        let others = Arc::new(others.collect::<BTreeMap<_, _>>());
        let gate = match before {
            Some(before) => before.gate.of(models.guard.clone(), config.guard.deadline),
            None => Gate::new(models.guard.clone(), config.guard.deadline),
        };
        let mut routes: Vec<Arc<Route>> = Vec::new();
        for (index, route) in config.routes.iter().enumerate() {
            let policies = policies(&config, index, &routes, &lasting.metrics)?;
            let upstream = Upstream::of_route(route, |name| endpoints.get(name).cloned());
            routes.push(Arc::new(Route {
                config: config.for_route(route),
                route: route.clone(),
                guard: models.guard.clone(),
                policies,
                gate: gate.clone(),
                // The check of the configuration has seen to it that all are there.
                upstream: upstream.ok_or(BuildError::NoModel)?,
                others: others.clone(),
                cache: lasting.cache.clone(),
                cut: lasting.cut.clone(),
            }));
        }
        let tenants = Tenants::new(&config.tenants, before.map(|before| &before.tenants));
        Ok(Self { config: Arc::new(config), models, routes, tenants, gate, endpoints })
    }

    /// Loads what does not need a model, and puts nothing in force.
    pub(crate) fn check(config: &CheckedConfig) -> Result<(), BuildError> {
        for (name, url) in &config.upstreams {
            Endpoint::url(name, url)
                .map_err(|source| BuildError::Roots { upstream: name.clone(), source })?;
        }
        if let UpstreamConfig::Url(url) = &config.upstream {
            let upstream = DEFAULT_UPSTREAM.to_owned();
            Endpoint::url(DEFAULT_UPSTREAM, url).map_err(|source| BuildError::Roots { upstream, source })?;
        }
        (0..config.routes.len()).try_for_each(|index| policies(config, index, &[], &Arc::default()).map(drop))
    }

    /// Begins to check the upstreams' health.
    pub(crate) fn start(&self) {
        self.endpoints.values().for_each(Endpoint::watch);
    }

    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.values()
    }
}

/// The upstreams by their names, that of the section `upstream` included where some route uses it.
fn endpoints(
    config: &CheckedConfig,
    models: &Models,
    before: Option<&Live>,
) -> Result<BTreeMap<String, Arc<Endpoint>>, BuildError> {
    let mut endpoints = BTreeMap::new();
    let named = config.upstreams.iter();
    let named = named.map(|(name, url)| (name.as_str(), UpstreamConfig::Url(Box::new(url.clone()))));
    let usual = [(DEFAULT_UPSTREAM, config.upstream.clone())];
    let usual = usual.into_iter().filter(|_| config.uses_default_upstream());
    for (name, made_of) in named.chain(usual) {
        // A model is another one after it was loaded anew.
        let same_model = |before: &Live| match (&before.models.chat, &models.chat) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            _ => matches!(made_of, UpstreamConfig::Url(_)),
        };
        let kept = before.filter(|before| same_model(before) || matches!(made_of, UpstreamConfig::Url(_)));
        let kept =
            kept.and_then(|before| before.endpoints.get(name)).filter(|endpoint| endpoint.is_of(&made_of));
        let endpoint = match (kept, &made_of) {
            (Some(kept), _) => kept.clone(),
            (None, UpstreamConfig::Url(url)) => Endpoint::url(name, url)
                .map_err(|source| BuildError::Roots { upstream: name.to_owned(), source })?,
            (None, UpstreamConfig::Embedded(embedded)) => {
                Endpoint::embedded(name, models.chat.clone().ok_or(BuildError::NoModel)?, embedded)
            }
        };
        endpoints.insert(name.to_owned(), endpoint);
    }
    Ok(endpoints)
}

/// The chain of the route at `index`; routes with equal policies share one.
fn policies(
    config: &CheckedConfig,
    index: usize,
    built: &[Arc<Route>],
    metrics: &Arc<Metrics>,
) -> Result<Arc<Policies>, BuildError> {
    let RouteConfig { policy: own, judging_sha256, .. } = &config.routes[index];
    let chain = match built.iter().find(|route| route.route.policy == *own) {
        Some(equal) => equal.policies.chain.clone(),
        None => {
            let key = if own.plugins == config.policy.plugins {
                "policy.plugins".to_owned()
            } else {
                format!("routes[{index}].policy.plugins")
            };
            Arc::new(policies::chain(own, metrics).map_err(|source| BuildError::Plugin { key, source })?)
        }
    };
    Ok(Arc::new(Policies::new(chain, judging_sha256)))
}

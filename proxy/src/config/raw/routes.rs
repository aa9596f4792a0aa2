//! Routes: which requests they take, and what differs for them.

use std::{collections::BTreeMap, fmt};

use forethought_core::guard::Mode as GuardMode;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{
    GuardModeSchema, Mode, OnDisagreement, OnFailure, OnUnread, Order, RawPlugin, RawPolicy, RawResponseGuard,
};

/// What is done with some requests. A request must match all that is set of `path_prefix`, `headers`, `models` and
/// `tenants`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRoute {
    /// Its name in audit records, logs and metrics.
    pub name: String,
    /// Takes requests whose path begins so, such as `/team-a`; what follows is the path that is read and sent on.
    pub path_prefix: Option<String>,
    /// Takes requests with these headers: a name, and a value in which `*` stands for anything.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Takes requests for these models; `*` stands for anything. Requests that no guard reads match no model.
    #[serde(default)]
    pub models: Vec<String>,
    /// Takes requests of these tenants.
    #[serde(default)]
    pub tenants: Vec<String>,
    /// The upstreams it sends to: names of `[upstreams]`, or `default` for the one of `[upstream]`, which is also what is
    /// used where none is named.
    #[serde(default)]
    #[schemars(with = "Vec<RouteUpstreamSchema>")]
    pub upstreams: Vec<RawRouteUpstream>,
    /// Most upstreams that one request is sent to, one after another. Only what no upstream has worked on is sent again: the
    /// connection failed, or the answer's status was 429 or 503.
    pub tries: Option<usize>,
    /// Send a request again as well where the connection broke off, or the time was over, before the answer began. The
    /// upstream may have worked on it, and may bill it twice. Bodies that no guard reads are held in memory then, too.
    #[serde(default)]
    pub retry_unanswered: bool,
    /// What differs from `guard`.
    #[serde(default)]
    pub guard: RawRouteGuard,
    /// What differs from `policy`.
    #[serde(default)]
    pub policy: RawRoutePolicy,
    /// Whether answers are read, in place of `response_guard.enabled`.
    pub response_guard: Option<bool>,
}

/// An upstream of a route: its name, or a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RawRouteUpstream {
    /// Its name.
    pub name: String,
    /// Its share of the requests, beside others of the same priority.
    pub weight: u32,
    /// Lower ones are asked first; others only where all of those are down or have failed.
    pub priority: u32,
}

/// What a route changes of `guard`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawRouteGuard {
    /// In place of `guard.mode`.
    #[schemars(with = "Option<GuardModeSchema>")]
    pub mode: Option<GuardMode>,
    /// In place of `guard.deadline_ms`.
    pub deadline_ms: Option<u64>,
}

/// What a route changes of `policy`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawRoutePolicy {
    /// In place of `policy.mode`.
    pub mode: Option<Mode>,
    /// In place of `policy.order`.
    pub order: Option<Order>,
    /// In place of `policy.threshold`.
    pub threshold: Option<f64>,
    /// In place of `policy.hazards`, all of them.
    pub hazards: Option<BTreeMap<String, f64>>,
    /// In place of `policy.message`.
    pub message: Option<String>,
    /// In place of `policy.on_failure`.
    pub on_failure: Option<OnFailure>,
    /// In place of `policy.on_unreadable`.
    pub on_unreadable: Option<OnUnread>,
    /// In place of `policy.on_truncated`.
    pub on_truncated: Option<OnUnread>,
    /// In place of `policy.on_disagreement`.
    pub on_disagreement: Option<OnDisagreement>,
    /// In place of `policy.disagreement_gap`.
    pub disagreement_gap: Option<f64>,
    /// In place of `policy.plugins`, all of them.
    pub plugins: Option<Vec<RawPlugin>>,
}

impl RawRoutePolicy {
    /// `usual` with what differs.
    pub(in crate::config) fn over(&self, usual: &RawPolicy) -> RawPolicy {
        RawPolicy {
            mode: self.mode.unwrap_or(usual.mode),
            order: self.order.unwrap_or(usual.order),
            threshold: self.threshold.unwrap_or(usual.threshold),
            hazards: self.hazards.as_ref().unwrap_or(&usual.hazards).clone(),
            message: self.message.as_ref().unwrap_or(&usual.message).clone(),
            on_failure: self.on_failure.unwrap_or(usual.on_failure),
            on_unreadable: self.on_unreadable.unwrap_or(usual.on_unreadable),
            on_truncated: self.on_truncated.unwrap_or(usual.on_truncated),
            on_disagreement: self.on_disagreement.unwrap_or(usual.on_disagreement),
            disagreement_gap: self.disagreement_gap.unwrap_or(usual.disagreement_gap),
            plugins: self.plugins.as_ref().unwrap_or(&usual.plugins).clone(),
            ..usual.clone()
        }
    }
}

impl RawRoute {
    /// The route that takes all, where none is written.
    pub(in crate::config) fn usual() -> Self {
        Self {
            name: "default".to_owned(),
            path_prefix: None,
            headers: BTreeMap::new(),
            models: vec![],
            tenants: vec![],
            upstreams: vec![],
            tries: None,
            retry_unanswered: false,
            guard: RawRouteGuard::default(),
            policy: RawRoutePolicy::default(),
            response_guard: None,
        }
    }

    /// `usual`, on or off as it says.
    pub(in crate::config) fn response_guard(&self, usual: &RawResponseGuard) -> RawResponseGuard {
        RawResponseGuard { enabled: self.response_guard.unwrap_or(usual.enabled), ..usual.clone() }
    }
}

impl<'de> Deserialize<'de> for RawRouteUpstream {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrTable;
        impl<'de> de::Visitor<'de> for NameOrTable {
            type Value = RawRouteUpstream;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an upstream, or a table with `name`, `weight` and `priority`")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
                Ok(RouteUpstreamTable { name: name.to_owned(), weight: 1, priority: 0 }.into())
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let table = RouteUpstreamTable::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(table.into())
            }
        }
        deserializer.deserialize_any(NameOrTable)
    }
}

/// An upstream of a route, written as a table.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RouteUpstreamTable {
    /// Its name.
    name: String,
    /// Its share of the requests, beside others of the same priority.
    #[serde(default = "one")]
    weight: u32,
    /// Lower ones are asked first; others only where all of those are down or have failed.
    #[serde(default)]
    priority: u32,
}

impl From<RouteUpstreamTable> for RawRouteUpstream {
    fn from(table: RouteUpstreamTable) -> Self {
        let RouteUpstreamTable { name, weight, priority } = table;
        Self { name, weight, priority }
    }
}

fn one() -> u32 {
    1
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code)] // only its schema is used
enum RouteUpstreamSchema {
    Name(String),
    Table(RouteUpstreamTable),
}

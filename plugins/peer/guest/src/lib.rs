//! The policy `thresholds` (plugins/policies/thresholds) for Extism: JSON in, JSON out.

use std::collections::BTreeMap;

use extism_pdk::{FnResult, config, plugin_fn};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(default)]
struct Thresholds {
    threshold: f64,
    hazards: BTreeMap<String, f64>,
    tenants: BTreeMap<String, Tenant>,
    message: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Tenant {
    threshold: Option<f64>,
    hazards: BTreeMap<String, f64>,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            threshold: 0.5,
            hazards: BTreeMap::new(),
            tenants: BTreeMap::new(),
            message: "I can't help with that.".to_owned(),
        }
    }
}

#[derive(Deserialize)]
struct Input {
    request: Request,
    evidence: Evidence,
}

#[derive(Deserialize)]
#[allow(dead_code)] // typed as in the other interface, read or not
struct Request {
    model: String,
    path: String,
    api: String,
    tenant: Option<String>,
    languages: Vec<String>,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
#[allow(dead_code)]
struct Message {
    role: String,
    parts: Vec<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Evidence {
    score: f64,
    hazard: Option<String>,
}

#[plugin_fn]
pub fn decide(input: String) -> FnResult<String> {
    let policy: Thresholds = serde_json::from_str(&config::get("config")?.unwrap_or_default())?;
    let Input { request, evidence } = serde_json::from_str(&input)?;
    let tenant = request.tenant.as_ref().and_then(|name| policy.tenants.get(name));
    let hazard = evidence.hazard.as_deref().unwrap_or("");
    let own = tenant.and_then(|tenant| tenant.hazards.get(hazard).or(tenant.threshold.as_ref()));
    let threshold = *own.or(policy.hazards.get(hazard)).unwrap_or(&policy.threshold);
    let score = evidence.score;
    Ok(if score < threshold {
        json!({"decision": "allow", "reason": format!("score {score:.3} below {threshold}")})
    } else {
        json!({"decision": "refuse", "text": policy.message, "reason": format!("score {score:.3} at or above {threshold}")})
    }
    .to_string())
}

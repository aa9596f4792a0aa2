//! Whether a proxy may be sent requests.

use serde_json::{Map, Value};

use crate::Proxy;

/// Whether all is well, and what each check says: `ok`, or what is not.
pub(super) fn checks(proxy: Option<&Proxy>) -> (bool, Value) {
    let Some(proxy) = proxy else {
        return report([("model", Err("being loaded".to_owned()))]);
    };
    let load = proxy.guard_load();
    let queue = match load.queue {
        limit if limit > 0 && load.waiting >= limit => Err(format!("full: {limit} conversations wait")),
        _ => Ok(()),
    };
    let audit = match proxy.audit.denies() {
        true => Err("records can't be written, and `audit.on_error` is `deny`".to_owned()),
        false => Ok(()),
    };
    let stopping = match proxy.is_stopping() {
        true => Err("running requests end, and no new ones are taken".to_owned()),
        false => Ok(()),
    };
    // A proxy is made of a model and a chain, or not at all.
    report([
        ("model", Ok(())),
        ("policies", Ok(())),
        ("queue", queue),
        ("audit", audit),
        ("stopping", stopping),
    ])
}

fn report<const N: usize>(checks: [(&str, Result<(), String>); N]) -> (bool, Value) {
    let is_ready = checks.iter().all(|(_, check)| check.is_ok());
    let shown = checks
        .map(|(name, check)| (name.to_owned(), Value::from(check.err().unwrap_or_else(|| "ok".to_owned()))));
    (is_ready, Value::Object(Map::from_iter(shown)))
}

//! Lets trusted tenants ask what others may not, hazard by hazard: a security team may ask about attacks, and about
//! nothing else that is refused to others.
//!
//! ```toml
//! config = { tenants = { security-team = ["cyber"] } }
//! ```
//!
//! It needs `policy.tenant_header`, and something in front of the proxy that sets that header to what it has verified.

use std::collections::BTreeMap;

use forethought_policy::prelude::*;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Allowlist {
    /// The hazards that each tenant may ask about, by the tenant's name.
    tenants: BTreeMap<String, Vec<String>>,
}

impl Policy for Allowlist {
    fn configure(&mut self) -> Result<(), String> {
        match self.tenants.iter().find(|(_, hazards)| hazards.is_empty()) {
            Some((tenant, _)) => Err(format!("the tenant `{tenant}` has no hazards; leave it out")),
            None => Ok(()),
        }
    }

    fn decide(&mut self, request: &Request, evidence: &Evidence, _: &[Opinion]) -> Ruling {
        let (Some(tenant), Some(hazard)) = (&request.tenant, &evidence.hazard) else { return pass() };
        match self.tenants.get(tenant) {
            Some(hazards) if hazards.contains(hazard) => {
                allow().because(format!("{tenant} may ask about {hazard}")).flag("allowlisted")
            }
            _ => pass(),
        }
    }
}

forethought_policy::export!(Allowlist);

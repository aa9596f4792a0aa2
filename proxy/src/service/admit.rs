//! Who asks, and which route takes the request.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};
use http::{Method, request};

use super::inbound::Inbound;
use crate::{
    api,
    audit::{Disposition, Exit},
    live::{Live, Route},
    reply::Error,
    tenants::OwnKey,
};

impl Live {
    /// Lets a request in, where its caller must be known.
    pub(super) fn admit(&self, exit: &mut Exit, head: &mut request::Parts) -> Result<(), Error> {
        let admitted = self.tenants.admit(&head.headers);
        let admitted =
            admitted.inspect_err(|error| exit.decided(Disposition::Deny, "tenants", error.code()))?;
        if let Some(admitted) = admitted {
            head.extensions.insert(OwnKey);
            exit.admitted(admitted);
        }
        Ok(())
    }

    /// The route that takes a request. Its body is received where a route wants to know the model.
    pub(super) fn route<'a>(
        &'a self,
        exit: &'a mut Exit,
        head: &'a request::Parts,
        body: &'a mut Inbound,
    ) -> BoxFuture<'a, Result<Arc<Route>, Error>> {
        // Boxed, as the compiler can't see otherwise that this may be sent between threads.
        async move {
            let tenant = exit.record.tenant.clone();
            let take = |route: &&Arc<Route>| {
                route.route.rules.take_head(&head.uri, &head.headers, tenant.as_deref())
            };
            for route in self.routes.iter().filter(take) {
                let rules = &route.route.rules;
                let model = if rules.need_model() && head.method == Method::POST {
                    let target = rules.shorten(&head.uri).unwrap_or_else(|| head.uri.clone());
                    match api::find(target.path()) {
                        Some(format) => {
                            let bytes = body.receive(exit, &head.headers, &self.config.limits).await?;
                            format.model(&target, &bytes)?
                        }
                        None => None,
                    }
                } else {
                    None
                };
                if rules.take_model(model.as_deref()) {
                    return Ok(route.clone());
                }
            }
            Err(Error::NoRoute)
        }
        .boxed()
    }
}

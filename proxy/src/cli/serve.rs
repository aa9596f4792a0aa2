//! `forethought serve`: the proxy, until a signal stops it.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use tokio::runtime::Runtime;
use tracing::{info, warn};

use super::{
    config::{ConfigArgs, flag},
    runtime,
};
pub use crate::live::Models;
use crate::{
    AuditLog, CheckedConfig, Proxy, Reloader,
    admin::Admin,
    config::{AdminConfig, Flag, Listen, Mode, Order, RouteRules, ServerTls},
    log,
    metrics::Metrics,
    server::Listener,
    telemetry::Telemetry,
};

/// Flags of `forethought serve`.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeArgs {
    /// Address and port to listen on
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Base URL of an OpenAI-compatible API, or `embedded`
    #[arg(long, value_name = "URL")]
    pub upstream: Option<String>,
}

impl ServeArgs {
    fn flags(&self) -> impl Iterator<Item = Flag> {
        let listen = self.listen.as_ref().map(|value| flag("--listen", "listen", value));
        let upstream = self.upstream.as_ref().map(|value| flag("--upstream", "upstream.url", value));
        listen.into_iter().chain(upstream)
    }
}

/// Runs `forethought serve`. `load` loads the models; it is called after the configuration is checked and the port is
/// taken, and before any request is answered.
///
/// # Errors
/// Mistakes in the configuration, a port that is taken, models that can't be loaded.
pub fn run(
    args: &ServeArgs,
    config: &ConfigArgs,
    load: impl Fn(&CheckedConfig) -> Result<Models> + Send + Sync + 'static,
) -> Result<()> {
    let sources = config.sources(args.flags().chain(config.serving_log()));
    let config = CheckedConfig::load(&sources)?;
    log::init(&config.log);
    let runtime = runtime()?;
    let listener = runtime
        .block_on(Listener::bind(&config.listen))
        .with_context(|| format!("can't listen on {} (the setting `listen`)", config.listen))?;
    let admin = config.admin.clone().map(|admin| operate(admin, &runtime)).transpose()?;
    let models = load(&config)?;
    runtime.block_on(async {
        let (about, tls) = (warnings(&config), config.tls.is_some());
        let place = match listener.address() {
            Some(address) => format!("{}://{address}", if tls { "https" } else { "http" }),
            None => config.listen.to_string(),
        };
        let proxy = build(config, models)?;
        info!("listening on {place}");
        about.iter().for_each(|about| warn!("{about}"));
        let stop = signal(proxy.clone())?;
        let load = move |config: &CheckedConfig| load(config).map_err(Into::into);
        let reloader = Reloader::new(proxy.clone(), sources, Box::new(load));
        if let Some(admin) = admin {
            admin.started(proxy.clone(), Some(reloader.clone()));
        }
        tokio::spawn(reload(reloader)?);
        proxy.serve(listener, stop).await?;
        info!("stopped");
        Ok(())
    })
}

fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("can't listen on {address} (the setting `{setting}`)"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Starts the admin listener: probes see a proxy that is still loading its models.
fn operate(config: AdminConfig, runtime: &Runtime) -> Result<Arc<Admin>> {
    let listener = bind(config.listen, "admin.listen")?;
    let _context = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener)?;
    info!("operators are served on http://{}", listener.local_addr()?);
    let admin = Admin::new(config);
    runtime.spawn(admin.clone().serve(listener));
    Ok(admin)
}

/// The proxy that `config` describes.
///
/// # Errors
/// The audit file can't be opened, the system's certificates can't be read, a plugin can't be loaded, or `embedded` has no
/// model.
pub fn build(config: CheckedConfig, models: Models) -> Result<Arc<Proxy>> {
    let audit = match &config.audit {
        Some(audit) => AuditLog::open(audit.clone()).with_context(|| {
            format!("can't open the audit file {} (the setting `audit.path`)", audit.path.display())
        })?,
        None => AuditLog::disabled(),
    };
    let telemetry = config.telemetry.as_ref().map(Telemetry::new).transpose();
    let telemetry = telemetry.map_err(|error| anyhow!("can't send traces (`telemetry.otlp`): {error}"))?;
    let proxy = Proxy::new(config, models, audit, Arc::new(Metrics::new()))?;
    Ok(Arc::new(proxy.with_telemetry(telemetry)))
}

/// What an operator should know of a configuration that is right, but less safe than the default.
fn warnings(config: &CheckedConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    let shows_certificate = config.tls.as_ref().is_some_and(ServerTls::knows_callers);
    let remote = matches!(config.listen, Listen::Tcp(address) if !address.ip().is_loopback());
    if remote && config.tenants.is_empty() && !shows_certificate {
        warnings.push(format!(
            "{} can be reached from other machines, and callers are not authenticated: add `tenants`, set \
             `tls.client_ca_file`, or put something in front that does",
            config.listen
        ));
    }
    for route in &config.routes {
        // Without routes, the settings are meant by themselves.
        let at = if config.routes.len() == 1 && route.rules == RouteRules::default() {
            String::new()
        } else {
            format!(" of the route `{}`", route.name)
        };
        match route.policy.mode {
            Mode::Enforce => {}
            Mode::Monitor => warnings.push(format!("`policy.mode`{at} is `monitor`: nothing is refused")),
            Mode::Off => warnings.push(format!("`policy.mode`{at} is `off`: requests go upstream unread")),
        }
        if route.policy.order == Order::Parallel {
            warnings.push(format!(
                "`policy.order`{at} is `parallel`: refused requests have been sent upstream before they are cancelled"
            ));
        }
        if route.retry_unanswered {
            warnings.push(format!("`retry_unanswered`{at} is set: upstreams may work on a request twice"));
        }
    }
    if config.paths.pass.iter().any(|rule| rule.may_ask()) {
        warnings.push(
            "`paths.pass` lets requests through that may carry prompts; no guard reads them".to_owned(),
        );
    }
    warnings
}

/// Reloads on SIGHUP and when files change.
fn reload(reloader: Reloader) -> std::io::Result<impl Future<Output = ()>> {
    #[cfg(unix)]
    let mut asked = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
    Ok(async move {
        loop {
            let interval = reloader.interval();
            let looked = async {
                match interval {
                    Some(interval) => tokio::time::sleep(interval).await,
                    None => std::future::pending().await,
                }
            };
            #[cfg(unix)]
            let was_asked = tokio::select! {
                _ = asked.recv() => true,
                () = looked => false,
            };
            #[cfg(not(unix))]
            let was_asked = {
                looked.await;
                false
            };
            if was_asked || reloader.is_changed() {
                // It says in the log how it went.
                let _ = reloader.reload().await;
            }
        }
    })
}

/// Ends with the first signal to stop; the second one cuts what still runs.
pub(super) fn signal(proxy: Arc<Proxy>) -> Result<impl Future<Output = ()>> {
    let (first, stop) = tokio::sync::oneshot::channel();
    let mut signals = Signals::new()?;
    tokio::spawn(async move {
        signals.next().await;
        let _ = first.send(());
        signals.next().await;
        proxy.hurry();
    });
    Ok(async {
        let _ = stop.await;
    })
}

/// SIGINT and SIGTERM, instead of their usual effect.
#[cfg(unix)]
pub(super) struct Signals([tokio::signal::unix::Signal; 2]);

#[cfg(unix)]
impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]))
    }

    pub(super) async fn next(&mut self) {
        let [interrupt, terminate] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }
}

/// Ctrl-C, instead of its usual effect.
#[cfg(not(unix))]
pub(super) struct Signals;

#[cfg(not(unix))]
impl Signals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    pub(super) async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    #[test]
    fn less_safe_configurations_are_warned_of() {
        fn check(settings: &[(&str, &str)], expected: &[&str]) {
            let flag = |&(key, value): &(&str, &str)| Flag {
                name: "--set".to_owned(),
                key: key.to_owned(),
                value: value.to_owned(),
            };
            let sources = Sources { flags: settings.iter().map(flag).collect(), ..Sources::default() };
            let found = warnings(&CheckedConfig::load(&sources).unwrap());
            assert_eq!(found.len(), expected.len(), "{found:?}");
            assert!(found.iter().zip(expected).all(|(found, word)| found.contains(word)), "{found:?}");
        }
        check(&[], &[]);
        check(&[("listen", "0.0.0.0:1")], &["not authenticated"]);
        check(&[("listen", "[::1]:1")], &[]);
        check(&[("paths.pass", "POST /v1/embeddings,GET /v1/batches")], &[]);
        check(&[("policy.mode", "monitor")], &["nothing is refused"]);
        check(&[("policy.order", "parallel")], &["before they are cancelled"]);
        check(&[("policy.mode", "off"), ("paths.pass", "* /v1/**")], &["unread", "no guard"]);
    }
}

//! What the proxy itself costs: requests through it, with a guard that answers at once, against requests straight to the
//! same upstream, in turns within one run. Run it with `cargo bench -p forethought-tests`.

use std::time::{Duration, Instant};

use forethought_tests::{Client, FakeGuard, FakeUpstream, TestProxy, chat};
use serde_json::{Value, json};

const ROUNDS: usize = 20;
const ALONE: usize = 250;
const TOGETHER: usize = 500;
const CALLERS: usize = 16;

/// Latencies of one way, and its requests a second with many callers.
#[derive(Default)]
struct Way {
    latencies: Vec<Duration>,
    rates: Vec<f64>,
}

impl Way {
    async fn round(&mut self, client: &Client, body: &Value) {
        for _ in 0..ALONE {
            let since = Instant::now();
            assert!(client.chat(body).await.status.is_success());
            self.latencies.push(since.elapsed());
        }
        let since = Instant::now();
        let callers = (0..CALLERS).map(|_| {
            let (client, body) = (client.clone(), body.clone());
            tokio::spawn(async move {
                for _ in 0..TOGETHER / CALLERS {
                    assert!(client.chat(&body).await.status.is_success());
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.expect("no panic");
        }
        self.rates.push((TOGETHER / CALLERS * CALLERS) as f64 / since.elapsed().as_secs_f64());
    }

    fn quantile(&mut self, q: f64) -> f64 {
        self.latencies.sort_unstable();
        self.latencies[((self.latencies.len() - 1) as f64 * q) as usize].as_secs_f64() * 1e6
    }

    fn rate(&mut self) -> f64 {
        self.rates.sort_unstable_by(f64::total_cmp);
        self.rates[self.rates.len() / 2]
    }
}

#[tokio::main]
async fn main() {
    let upstream =
        FakeUpstream::answering(r#"{"id":"x","object":"chat.completion","choices":[{"index":0}]}"#).await;
    let body = chat(&"word ".repeat(200), json!({}));
    let direct = Client::new(format!("http://{}", upstream.host()));
    // Once as it comes, audit records included, and once without them.
    for (name, toml) in [("with audit records", ""), ("without audit records", "audit.enabled = false")] {
        let proxy = TestProxy::start(&FakeGuard::scoring(0.0), &upstream.url(), toml).await;
        let client = proxy.client();
        let (mut straight, mut through) = (Way::default(), Way::default());
        for _ in 0..ROUNDS {
            straight.round(&direct, &body).await;
            through.round(&client, &body).await;
        }
        println!(
            "{name}, {} requests each way, body of {} bytes",
            ROUNDS * (ALONE + TOGETHER),
            body.to_string().len()
        );
        println!("{:<18} {:>10} {:>10} {:>8}", "", "direct", "proxied", "ratio");
        for (label, q) in [("p50, us", 0.5), ("p99, us", 0.99)] {
            let (a, b) = (straight.quantile(q), through.quantile(q));
            println!("{label:<18} {a:>10.0} {b:>10.0} {:>8.2}", b / a);
        }
        let (a, b) = (straight.rate(), through.rate());
        println!("{:<18} {a:>10.0} {b:>10.0} {:>8.2}", format!("requests/s, {CALLERS}"), b / a);
        proxy.records().await;
    }
}

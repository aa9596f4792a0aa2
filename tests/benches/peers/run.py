"""What the proxy costs, beside nginx's `proxy_pass` and LiteLLM's proxy: same upstream, same load, in turns.

    python3 tests/benches/peers/run.py [--rounds 7] [--seconds 2] [--litellm PATH] [--out results.json]

Needs `bench-serve` (cargo build --release -p forethought-tests --bin bench-serve), nginx and wrk (Debian's packages
nginx-light and wrk), and LiteLLM in a virtual environment (pip install 'litellm[proxy]==1.100.0'), whose `litellm`
--litellm names; without it that peer is left out. All listen on loopback, and end with this script.

Each round asks every way in turn, first over one connection (latency), then over 16 (throughput). What a way adds is its
latency less that of the upstream asked directly in the same round; medians over the rounds are shown. Processor time is
what the way's own processes used for a request at 16 connections, which others on the machine change least.
"""

import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
TOGETHER = 16


def port():
    """A port that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Peers:
    """The processes that are measured, in a folder of their own."""

    def __init__(self, folder, binary, litellm):
        self.folder, self.running, self.urls, self.pids = pathlib.Path(folder), [], {}, {}
        self.upstream, self.binary, self.litellm = port(), binary, litellm

    def start_all(self):
        self.start("direct", self.upstream, ["nginx", "-e", "stderr", "-c", self.file("upstream.conf")])
        for name, log in [("nginx", self.folder / "access.log"), ("nginx, no log", "off")]:
            at = port()
            self.start(name, at, ["nginx", "-e", "stderr", "-c", self.file("proxy.conf", PORT=at, LOG=log)])
        for name, mode in [("forethought, mode off", "off"), ("forethought, guarded", "enforce")]:
            for suffix, audit in [("", "true"), (", no audit", "false")]:
                at = port()
                settings = {
                    "policy.mode": mode, "audit.enabled": audit, "log.level": "error",
                    "audit.path": self.folder / f"{at}.jsonl",
                }
                sets = [f"--set={key}={value}" for key, value in settings.items()]
                upstream = f"http://127.0.0.1:{self.upstream}/v1"
                self.start(name + suffix, at, [self.binary, f"--listen=127.0.0.1:{at}", f"--upstream={upstream}", *sets])
        if self.litellm:
            at = port()
            command = [self.litellm, "--config", self.file("litellm.yaml"), "--host", "127.0.0.1", "--port", at]
            # Not uvicorn's own workers: on a busy machine it takes those that start slowly for dead.
            self.start("litellm", at, [*command, "--run_gunicorn", "--num_workers", os.cpu_count()])

    def file(self, name, **more):
        """A configuration with its places filled in."""
        text = (HERE / name).read_text()
        for key, value in {"FOLDER": self.folder, "UPSTREAM": self.upstream, **more}.items():
            text = text.replace(f"@{key}@", str(value))
        file = self.folder / f"{len(self.running)}-{name}"
        file.write_text(text)
        return file

    def start(self, name, at, command):
        """Starts a process and waits until it answers as the upstream does."""
        log = open(self.folder / f"{at}.log", "w")
        env = {**os.environ, "LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, cwd=self.folder, env=env)
        self.running.append(process)
        self.pids[name] = process.pid
        self.urls[name] = url = f"http://127.0.0.1:{at}/v1/chat/completions"
        body = json.dumps({"model": "bench", "messages": [{"role": "user", "content": "hi"}]}).encode()
        for _ in range(2000):
            if process.poll() is not None:
                break
            try:
                head = {"content-type": "application/json", "authorization": "Bearer unused"}
                request = urllib.request.Request(url, body, head)
                answer = json.load(urllib.request.urlopen(request, timeout=5))
                assert answer["choices"][0]["message"]["content"] == "Hello there.", answer
                return
            except OSError:
                time.sleep(0.2)
        raise SystemExit(f"{name} did not come up: {pathlib.Path(log.name).read_text()[-2000:]}")

    def cpu(self, name):
        """Seconds of processor time that a way's processes have used."""
        ticks, pids = 0, [self.pids[name]]
        for pid in pids:
            stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(stat[11]) + int(stat[12])
            for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                pids += (task / "children").read_text().split()
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self):
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def load(url, connections, seconds):
    """The figures of one run of wrk."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", HERE / "chat.lua", url]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    [line] = [line for line in out.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def table(rounds, names):
    """Medians over the rounds, as Markdown."""
    median = lambda values: statistics.median(list(values))
    added = lambda name, key: median(r[name]["alone"][key] - r["direct"]["alone"][key] for r in rounds)
    per_second = lambda name: median(r[name]["together"]["per_second"] for r in rounds)
    used = lambda name: median(r[name]["together"]["cpu_us"] for r in rounds)
    rows = ["| way | p50, us | p99, us | adds at p50 | adds at p99 | a second, 16 connections | processor, us a request |"]
    rows.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in names:
        p50, p99 = (median(r[name]["alone"][key] for r in rounds) for key in ("p50_us", "p99_us"))
        more = [f"{added(name, key):,.0f}" if name != "direct" else "" for key in ("p50_us", "p99_us")]
        rows.append(f"| {name} | {p50:,.0f} | {p99:,.0f} | {more[0]} | {more[1]} | {per_second(name):,.0f} | {used(name):,.0f} |")
    rows += ["", "| ratio, median of the rounds' own (least to most) | |", "| --- | --- |"]

    def ratio(label, of):
        values = sorted(of(r) for r in rounds)
        rows.append(f"| {label} | {median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f}) |")

    cost = lambda r, name: r[name]["alone"]["p50_us"] - r["direct"]["alone"]["p50_us"]
    rate = lambda r, name: r[name]["together"]["per_second"]
    cpu = lambda r, name: r[name]["together"]["cpu_us"]
    for name in names:
        if name.startswith("forethought"):
            nginx = "nginx, no log" if name.endswith("no audit") else "nginx"
            ratio(f"{name}: adds at p50, by {nginx}'s", lambda r: cost(r, name) / max(cost(r, nginx), 1))
            ratio(f"{name}: requests a second, by {nginx}'s", lambda r: rate(r, name) / rate(r, nginx))
            ratio(f"{name}: processor time, by {nginx}'s", lambda r: cpu(r, name) / cpu(r, nginx))
            if "litellm" in names:
                ratio(f"{name}: requests a second, by litellm's", lambda r: rate(r, name) / rate(r, "litellm"))
                ratio(f"litellm: processor time, by {name}'s", lambda r: cpu(r, "litellm") / cpu(r, name))
    return "\n".join(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--binary", default=ROOT / "target/release/bench-serve", type=pathlib.Path)
    parser.add_argument("--litellm", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="each round's figures, as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(folder, args.binary.resolve(), args.litellm and args.litellm.absolute())
        try:
            peers.start_all()
            names, rounds = list(peers.urls), []
            for url in peers.urls.values():
                load(url, TOGETHER, 3)
            for i in range(args.rounds):
                # Every other round backwards, so that no way always comes after the same one.
                turn = {}
                for name in names if i % 2 == 0 else reversed(names):
                    # LiteLLM answers too few for figures in so short a time.
                    url, seconds = peers.urls[name], args.seconds * (4 if name == "litellm" else 1)
                    alone, before = load(url, 1, seconds), peers.cpu(name)
                    together = load(url, TOGETHER, seconds)
                    together["cpu_us"] = (peers.cpu(name) - before) * 1e6 / max(together["requests"], 1)
                    turn[name] = {"alone": alone, "together": together}
                assert all(way[key]["errors"] == 0 < way[key]["requests"] for way in turn.values() for key in way), turn
                rounds.append(turn)
        finally:
            peers.stop()
    if args.out:
        args.out.write_text(json.dumps(rounds, indent=1))
    print(table(rounds, names))


if __name__ == "__main__":
    main()

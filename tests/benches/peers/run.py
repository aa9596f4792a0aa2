"""What the proxy costs, beside nginx's `proxy_pass` and LiteLLM's proxy: same upstream, same load, in turns.

    python3 tests/benches/peers/run.py [--rounds 7] [--seconds 2] [--litellm PATH] [--out results.json]

Needs `bench-serve` (cargo build --release -p forethought-tests --bin bench-serve), nginx and wrk (Debian's packages
nginx-light and wrk), and LiteLLM in a virtual environment (pip install 'litellm[proxy]==1.100.0'), whose `litellm`
--litellm names; without it that peer is left out. All listen on loopback, and end with this script.

Each round asks every way in turn: over one connection with everything on one core, over one connection with all cores, and
over 16 with all cores. What a way adds is its latency less that of the upstream asked directly in the same round; medians over
the rounds are shown. On one core that is the work of a request; with all cores most of it is the waking of idle cores, which
depends on where the kernel happens to put which process. Processor time is what the way's own processes used for a request at
16 connections, which others on the machine change least.
"""

import argparse
import contextlib
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
CORES = os.sched_getaffinity(0)
ONE = {min(CORES)}


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

    def family(self, name):
        """The threads of a way's processes."""
        pids = [self.pids[name]]
        for pid in pids:
            for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                # Idle threads may end meanwhile.
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    pids += (task / "children").read_text().split()
                    yield task

    def cpu(self, name):
        """Seconds of processor time that a way's processes have used."""
        ticks = 0
        for process in {task.parents[1] for task in self.family(name)}:
            stat = (process / "stat").read_text().rpartition(")")[2].split()
            ticks += int(stat[11]) + int(stat[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def keep_to(self, cores):
        """Has all of them run on these cores only."""
        for name in self.pids:
            for task in self.family(name):
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task.name), cores)

    def stop(self):
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def load(url, connections, seconds, cores=CORES):
    """The figures of one run of wrk on these cores."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", HERE / "chat.lua", url]
    own = lambda: os.sched_setaffinity(0, cores)
    out = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=own).stdout
    [line] = [line for line in out.splitlines() if line.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


def table(rounds, names):
    """Medians over the rounds, as Markdown."""
    median = lambda values: statistics.median(list(values))
    added = lambda name, of, key: median(r[name][of][key] - r["direct"][of][key] for r in rounds)
    per_second = lambda name: median(r[name]["together"]["per_second"] for r in rounds)
    used = lambda name: median(r[name]["together"]["cpu_us"] for r in rounds)
    rows = ["| way | one core: p50, us | adds | p99, us | all cores: p50, us | adds | a second, 16 connections | processor, us a request |"]
    rows.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in names:
        figures = []
        for of, keys in [("one_core", ("p50_us", "p99_us")), ("alone", ("p50_us",))]:
            p50, *p99 = (f"{median(r[name][of][key] for r in rounds):,.0f}" for key in keys)
            figures += [p50, f"{added(name, of, 'p50_us'):,.0f}" if name != "direct" else "", *p99]
        rows.append(f"| {name} | {' | '.join(figures)} | {per_second(name):,.0f} | {used(name):,.0f} |")
    rows += ["", "| ratio, median of the rounds' own (least to most) | |", "| --- | --- |"]

    def ratio(label, of):
        values = sorted(of(r) for r in rounds)
        rows.append(f"| {label} | {median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f}) |")

    cost = lambda r, name, of: r[name][of]["p50_us"] - r["direct"][of]["p50_us"]
    rate = lambda r, name: r[name]["together"]["per_second"]
    cpu = lambda r, name: r[name]["together"]["cpu_us"]
    for name in names:
        if name.startswith("forethought"):
            nginx = "nginx, no log" if name.endswith("no audit") else "nginx"
            for of, where in [("one_core", "one core"), ("alone", "all cores")]:
                label = f"{name}: adds at p50 on {where}, by {nginx}'s"
                ratio(label, lambda r: cost(r, name, of) / max(cost(r, nginx, of), 1))
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
                    peers.keep_to(ONE)
                    one_core = load(url, 1, seconds, ONE)
                    peers.keep_to(CORES)
                    alone, before = load(url, 1, seconds), peers.cpu(name)
                    together = load(url, TOGETHER, seconds)
                    together["cpu_us"] = (peers.cpu(name) - before) * 1e6 / max(together["requests"], 1)
                    turn[name] = {"one_core": one_core, "alone": alone, "together": together}
                assert all(way[key]["errors"] == 0 < way[key]["requests"] for way in turn.values() for key in way), turn
                rounds.append(turn)
        finally:
            peers.stop()
    if args.out:
        args.out.write_text(json.dumps(rounds, indent=1))
    print(table(rounds, names))


if __name__ == "__main__":
    main()

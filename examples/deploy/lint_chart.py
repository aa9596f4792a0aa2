"""Renders the Helm chart with Helm's own engine, and checks each manifest against the schemas of Kubernetes."""

import sys
import tomllib

import kubernetes_validate
import yaml
from helm_python import Chart

CASES = {
    "defaults": {},
    "all set": {
        "autoscaling": {"enabled": False},
        "serviceMonitor": {"enabled": True},
        "audit": {"storageClass": "fast"},
        "admin": {"secret": "mine", "key": "admin"},
        "config": "[guard]\nqueue = 64\n",
        "envFrom": [{"secretRef": {"name": "keys"}}],
    },
}

chart = Chart.load(sys.argv[1])
for name, values in CASES.items():
    kinds = []
    for path, text in chart.render(values=values, name="release").items():
        if not path.endswith(".yaml"):
            continue
        for manifest in filter(None, yaml.safe_load_all(text)):
            # Not Kubernetes's own.
            if manifest["kind"] != "ServiceMonitor":
                kubernetes_validate.validate(manifest, "1.31", strict=True)
            if manifest["kind"] == "ConfigMap":
                tomllib.loads(manifest["data"]["forethought.toml"])
            kinds.append(manifest["kind"])
    print(f"{name}: {', '.join(sorted(kinds))}")

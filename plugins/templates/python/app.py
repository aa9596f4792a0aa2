"""A policy of the Forethought proxy."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports.types import (
    Decision_Pass,
    Decision_Refuse,
    Manifest,
    ResponseDecision_Pass,
    ResponseRuling,
    Ruling,
)

CONFIG = {"threshold": 0.5, "hazards": {}}


class Policy(exports.Policy):
    def init(self, config: str) -> Manifest:
        """Called once in every new instance, with what the operator writes under `config`."""
        own = json.loads(config)
        wrong = next((key for key in own if key not in CONFIG), None)
        if wrong is not None:
            raise Err(f"there is no key {wrong}")
        CONFIG.update(own)
        # Making an instance takes two milliseconds, so one is used for many requests: keep nothing of a request in it.
        return Manifest(name="{{name}}", version="0.1.0", stateful=True)

    def decide_request(self, request, evidence, so_far) -> Ruling:
        threshold = CONFIG["hazards"].get(evidence.hazard, CONFIG["threshold"])
        # A score that is not a number compares false: written this way round, it refuses.
        if evidence.score < threshold:
            return Ruling(decision=Decision_Pass(), reason="", flags=[])
        return Ruling(
            decision=Decision_Refuse("I can't help with that."),
            reason=f"score {evidence.score:.3f} at or above {threshold}",
            flags=[],
        )

    def decide_response(self, request, evidence, window) -> ResponseRuling:
        return ResponseRuling(decision=ResponseDecision_Pass(), reason="", flags=[])

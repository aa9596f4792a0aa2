"""Checks probes (`NAME.onnx` beside `NAME.json` for each argument) as any user of ONNX would see them."""

import json
import sys

import numpy
import onnx
import onnxruntime

for name in sys.argv[1:]:
    with open(f"{name}.json", encoding="utf-8") as file:
        expected = json.load(file)
    model = onnx.load(f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8 and [o.version for o in model.opset_import] == [17]
    assert {p.key: p.value for p in model.metadata_props} == expected["metadata"]

    session = onnxruntime.InferenceSession(f"{name}.onnx", providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == expected["metadata"]
    (hidden,), (probability,) = session.get_inputs(), session.get_outputs()
    assert (hidden.name, hidden.type, hidden.shape) == ("hidden", "tensor(float)", ["batch", expected["width"]])
    assert (probability.name, probability.shape) == ("probability", ["batch", 1])

    states = numpy.array(expected["states"], dtype=numpy.float32).reshape(-1, expected["width"])
    wanted = numpy.array(expected["probabilities"])
    assert wanted.max() - wanted.min() > 0.5, "nothing to tell apart"
    for batch in (1, 7, len(states)):
        found = numpy.concatenate(
            [session.run(None, {"hidden": states[i : i + batch]})[0][:, 0] for i in range(0, len(states), batch)]
        )
        off = numpy.abs(found - wanted).max()
        assert off < 1e-5, f"{name}, batches of {batch}: {off}"
    print(f"{name.rsplit('/', 1)[-1]}: full check passed, largest difference {off:.1e}")

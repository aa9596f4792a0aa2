"""The peer of probe.rs: Python's onnxruntime on the file that it wrote.

    pip install onnxruntime==1.31.1 numpy
    python probe.py FILE.onnx
"""

import statistics
import sys
import time

import numpy
import onnxruntime

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
for batch in (1, 64):
    states = numpy.cos(numpy.arange(batch * 576, dtype="float32") * 0.3).reshape(batch, 576)
    times = []
    for _ in range(5000):
        since = time.perf_counter()
        session.run(None, {"hidden": states})
        times.append((time.perf_counter() - since) * 1e6)
    print(f"python, batch {batch:2}: {statistics.median(times):.1f} us a call")

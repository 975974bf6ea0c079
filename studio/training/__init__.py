"""One training job: config, batching, loss, loop, events. `run` is the subprocess that the worker starts."""

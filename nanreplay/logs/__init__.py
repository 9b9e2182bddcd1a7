"""What logs and checkpoints tell of a training that nobody recorded. `run_of_logs` reads them.

Imports no TensorFlow: event files and checkpoints are read as bytes, and nothing in them is run.
"""

from __future__ import annotations

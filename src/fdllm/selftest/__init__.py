"""Is every data type and path of a device right? Each is held against float32 on a CPU."""

from fdllm.selftest.result import Result, run_selftest

__all__ = ["Result", "run_selftest"]

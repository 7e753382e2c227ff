"""How the suite has XLA compile: nearly all of a test's time is compilation.

The numbers hold as a run compiles them: `test_optimised.py`.
"""

from importlib import metadata

FLAGS = "--xla_backend_optimization_level=0"
# Its newer way to write a kernel takes twice as long. Later versions have no other, and a flag that
# XLA does not know ends the process.
if metadata.version("jaxlib") == "0.10.2":
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
EIGHT_DEVICES = f"--xla_force_host_platform_device_count=8 {FLAGS}"

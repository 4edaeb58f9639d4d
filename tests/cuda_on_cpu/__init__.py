"""Run the .cu files on a CPU: shim.hpp and worker.hpp around them, machine.py for Python."""

"""What the library costs in time and memory, beside what an engineer would write or import: `python -m benchmarks`."""

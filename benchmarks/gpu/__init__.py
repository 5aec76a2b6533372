"""Acceptance of a machine with an NVIDIA GPU: small checks, in order of worth.

    bash scripts/gpu_check.sh [--minutes 9] [--tiny]

docs/gpu.md says which have run, on what, and with which result.
"""

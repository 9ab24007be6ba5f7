"""Speed and memory, against backpropagation through time and braintrace.

python -m tests.benchmarks --help
"""

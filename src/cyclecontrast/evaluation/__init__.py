"""Evaluation of backbones with fixed protocols. Importing this package does not import PyTorch.

protocol.py defines the interface of a protocol, runner.py runs every evaluation.
"""

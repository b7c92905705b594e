"""Evaluation of backbones by fixed protocols, and the table of all of them. Importing this imports no PyTorch.

protocol.py defines the interface of a protocol, runner.py runs every evaluation.
"""

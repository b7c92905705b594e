"""Evaluation of backbones by fixed protocols, and the table of all of them. Importing this imports no PyTorch.

protocol.py has the contract, runner.py the one way into an evaluation.
"""

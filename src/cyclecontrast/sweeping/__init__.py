"""The paper's ablation tables, each in one command. Importing this imports no PyTorch."""

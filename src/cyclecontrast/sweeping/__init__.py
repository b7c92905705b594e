"""The ablation tables of the paper, each with one command. Importing this imports no PyTorch."""

"""The protocol `action`: clips of labeled videos are classified, after training all layers or the last."""

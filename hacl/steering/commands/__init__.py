"""What the sub-commands of scripts/steer.py do, one module each: a function of its options that returns an exit status.

The options themselves are declared in the script, so that its help needs no torch.
"""

"""An evaluation, from a plan over runs and checks to results."""
